"""One process alone, and several that gather what they made in their order."""

import torch

from pidistill.processes import Processes, is_main_process, join_processes


def test_without_a_launcher_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = join_processes()
    assert alone == Processes(0, 1, None)
    assert alone.is_main
    assert alone.gather("x") == ["x"]
    assert alone.share("x") == "x"


def test_the_main_process_is_known_from_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


def _meet(index, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=index, world_size=2
    )
    processes = Processes(index, 2, torch.distributed.new_group(backend="gloo"))
    gathered = processes.gather(torch.full((2,), index))
    shared = processes.share("from the main one" if processes.is_main else None)
    torch.save((gathered, shared), f"{folder}/{index}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_gather_in_their_order(tmp_path):
    torch.multiprocessing.spawn(_meet, args=(str(tmp_path),), nprocs=2)
    gathered, shared = torch.load(tmp_path / "0.pt", weights_only=True)
    assert [part.tolist() for part in gathered] == [[0, 0], [1, 1]]
    assert shared == "from the main one"
    assert torch.load(tmp_path / "1.pt", weights_only=True) == ([], "from the main one")
