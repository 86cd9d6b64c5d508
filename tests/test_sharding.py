"""Divided tensors: whatever is cut is put together again."""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from pidistill.processes import join_processes
from pidistill.sharding import divided, load_whole, local, whole, whole_of, whole_tensors

from together import together


def test_an_ordinary_tensor_stays_as_it_is():
    x = torch.arange(3.0)
    assert local(x) is whole(x) is whole_of(x, x) is x
    assert torch.equal(divided(x, x), x)
    assert torch.equal(whole_tensors({"x": x}, keep=True)["x"], x)


def test_a_divided_tensor_is_put_together_again():
    """Of 5 rows, the first of two processes has 3; of 1, the second has none."""

    def work(rank):
        join_processes()
        mesh = init_device_mesh("cpu", (2,))
        for rows in (1, 4, 5):
            check(torch.arange(rows * 3.0).reshape(rows, 3), mesh, rank)

    assert together(2, work) == ["", ""]


def check(x, mesh, rank):
    sharded = distribute_tensor(x.clone(), mesh, [Shard(0)])
    assert isinstance(sharded, DTensor)
    assert len(local(sharded)) == ((len(x) + 1) // 2, len(x) // 2)[rank]
    assert torch.equal(whole(sharded), x)
    assert torch.equal(whole_of(local(sharded) + 1, sharded), x + 1)
    again = divided(2 * x, sharded)
    assert again.placements == sharded.placements
    assert torch.equal(whole(again), 2 * x)
    gathered = whole_tensors({"x": sharded}, keep=rank == 0)
    assert gathered.keys() == ({"x"} if rank == 0 else set())
    module = torch.nn.Module()
    module.x = torch.nn.Parameter(sharded)
    load_whole(module, {"x": 3 * x})
    assert torch.equal(whole(module.x.detach()), 3 * x)
