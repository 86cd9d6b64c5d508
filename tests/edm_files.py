"""Writes pickles of the structure that EDM's have, from our own networks.

The classes that EDM's pickles name do not exist here, so that stand-ins are put in their place
while a file is written. Their text, which EDM would execute, raises.
"""

import contextlib
import io
import pickle
import sys
import types

import torch
from torch import nn

SOURCE_TEXT = 'raise RuntimeError("the source text of the pickle was executed")\n'


def _executed(meta):
    raise RuntimeError("a persistent object was reconstructed by executing it")


class EasyDict(dict):
    pass


class Persistent:
    """Pickles as an object of EDM's persistence does."""

    def __init__(self, class_name, state):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": SOURCE_TEXT,
            "class_name": self.class_name,
            "state": self.state,
        }
        return _executed, (meta,)


@contextlib.contextmanager
def edm_modules():
    """Make the names that EDM's pickles hold importable, for as long as one is written."""
    places = {
        "torch_utils.persistence": ("_reconstruct_persistent_obj", _executed),
        "dnnlib.util": ("EasyDict", EasyDict),
    }
    before = [(o, o.__module__, o.__qualname__) for _, o in places.values()]
    names = [*places, "torch_utils", "dnnlib"]
    sys.modules.update({name: types.ModuleType(name) for name in names})
    for module, (name, o) in places.items():
        setattr(sys.modules[module], name, o)
        o.__module__, o.__qualname__ = module, name
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        for o, module, qualname in before:
            o.__module__, o.__qualname__ = module, qualname


def persistent(module, kwargs=None):
    """A module as EDM pickles it: persistent all through, but for torch's own containers."""
    children = {name: child and persistent(child) for name, child in module._modules.items()}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules = children
        return container
    state = {key: value for key, value in module.__dict__.items() if key != "config"}
    state |= {"_modules": children, "_init_args": (), "_init_kwargs": kwargs or {}}
    return Persistent(type(module).__name__, state)


def checkpoint(network, precond="EDMPrecond", settings=None, *, attributes=None):
    """The content of a checkpoint: `network` in the preconditioning, with attributes added."""
    config = {k: v for k, v in network.config.items() if k != "patch_size"}  # EDM has none
    ema = persistent(nn.Module())
    ema.class_name = precond
    ema.state["_modules"] = {"model": persistent(network, config)}
    inner = {k: v for k, v in config.items() if k not in ("in_channels", "out_channels")}
    ema.state["_init_kwargs"] = {
        "img_channels": config["in_channels"],
        "model_type": type(network).__name__,
        "use_fp16": False,
        **inner,
        **(settings or {}),
    }
    ema.state |= attributes or {}
    return {"ema": ema, "dataset_kwargs": EasyDict(path="x.zip", use_labels=False)}


def edm2_checkpoint(network, encoder=None):
    """The content of an EDM2 checkpoint; `encoder` has the state of a StabilityVAEEncoder."""
    config = {k: v for k, v in network.config.items() if k not in ("out_channels", "label_dropout")}
    unet = persistent(network, {"img_channels": config.pop("in_channels"), **config})
    unet.class_name = "UNet"
    ema = persistent(nn.Module())
    ema.class_name, ema.state["_modules"] = "Precond", {"unet": unet}
    if encoder is not None:
        encoder = Persistent("StabilityVAEEncoder", encoder)
    return EasyDict(encoder=encoder, loss_fn=Persistent("EDM2Loss", {}), ema=ema)


def dumps(content, protocol=4):
    """Pickle a checkpoint with the names of EDM's modules."""
    with edm_modules():
        file = io.BytesIO()
        pickle.Pickler(file, protocol).dump(content)
        return file.getvalue()


def randomized(network, seed=0):
    """`network` with weights that all matter, the ones that start near zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / fan_in**0.5)
            else:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
    return network.eval()
