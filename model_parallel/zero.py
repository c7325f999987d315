"""ZeRO-3 over the data axis (Rajbhandari et al. 2020) by DeepSpeed, on the frozen backbone alone.

DeepSpeed's parameter offload is used without its engine: the optimizer, the prompts and their gradients stay outside.
"""

from __future__ import annotations

import fcntl
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model_parallel.grid import Grid, TopologyError

_CAP_IPC_LOCK = 14
"""Bit of the right to lock memory without limit (capabilities(7))."""


def check_settings(settings: dict[str, Any], grid: Grid) -> None:
    """Raise :class:`TopologyError` for DeepSpeed settings that this grid or device cannot have."""
    group = settings.get("zero_hpz_partition_size", 1)
    if group > 1 and grid.tensor > 1:
        raise TopologyError(
            f"deepspeed.zero_hpz_partition_size={group}: DeepSpeed forms these groups of neighbouring ranks, which with"
            f" parallel.tensor={grid.tensor} hold different weights; set one of the two to 1"
        )
    if grid.data % max(1, group):
        raise TopologyError(
            f"deepspeed.zero_hpz_partition_size={group} does not divide the {grid.data} data ranks; choose a divisor"
        )
    for name in ("zero_quantized_weights", "zero_quantized_nontrainable_weights"):
        if settings.get(name) and grid.device.type != "cuda":
            raise TopologyError(
                f"deepspeed.{name}=true: DeepSpeed quantises with a CUDA kernel, and this is a CPU; use false"
            )


class ZeroShards:
    """The backbone's parameters over the data axis: split as they are loaded, gathered when a layer runs.

    ``gathered_numel`` counts what this rank has gathered so far, ``peak_numel`` the most that was gathered at once.
    """

    def __init__(self, grid: Grid, settings: dict[str, Any], dtype: torch.dtype) -> None:
        check_settings(settings, grid)
        _start_deepspeed(grid)
        offload = settings.get("offload_param", {})
        if offload.get("device") == "nvme":
            numbers = offload.get("buffer_count", 5) * offload.get("buffer_size", 100_000_000)
            check_locked_memory(numbers * (2 if dtype == torch.bfloat16 else 4))
            _check_disk_access()
        from deepspeed.runtime.zero.partition_parameters import Init

        self.grid, self.settings = grid, settings
        self.config = {
            "train_micro_batch_size_per_gpu": 1,
            # Without `dtype=`, DeepSpeed takes its buffers' type from here and not from what the processor supports.
            "bf16": {"enabled": dtype == torch.bfloat16},
            "zero_optimization": {
                "stage": 3,
                # Every parameter is split: by default, those of up to 100,000 numbers stay whole.
                "stage3_param_persistence_threshold": 0,
                # We have our own layer that lets go of its weight; DeepSpeed's would replace a function of torch.
                "memory_efficient_linear": False,
                **settings,
            },
        }
        self._init = Init(
            data_parallel_group=self._group(),
            config_dict_or_path=self.config,
            mem_efficient_linear=False,
        )
        self._parameters: list[nn.Parameter] = []
        self._offload: Any = None
        self._root: nn.Module | None = None
        self.gathered_numel = self.peak_numel = self._now = 0

    def _group(self) -> Any:
        from torch import distributed

        return self.grid.data_group or distributed.group.WORLD

    def partition(self, parameters: list[nn.Parameter]) -> None:
        """Send parameters from the first data rank to the others, keep this rank's part, free the rest."""
        self._init._convert_to_zero_parameters(parameters)
        for parameter in parameters:
            self._count(parameter)
        self._parameters += parameters

    def attach(self, model: nn.Module) -> None:
        """Gather and free the parameters of ``model``, all partitioned, as its modules run forward and backward."""
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.utils.timer import NoopTimer

        zero = DeepSpeedConfig(self.config).zero_config
        self._offload = DeepSpeedZeRoOffload(
            model,
            timers=NoopTimer(),
            ds_config=self.config,
            prefetch_bucket_size=zero.prefetch_bucket_size,
            max_reuse_distance=zero.max_reuse_distance,
            max_live_parameters=zero.max_live_parameters,
            param_persistence_threshold=0,
            dp_process_group=self._group(),
            offload_param_config=zero.offload_param,
            zero_param_parallel_group=self._init.zero_param_process_group,
            zero_quantized_weights=zero.zero_quantized_weights,
            zero_quantized_nontrainable_weights=zero.zero_quantized_nontrainable_weights,
        )
        self._root = model
        model.is_zero_root = True  # type: ignore[assignment]

    def release(self, failed: bool = False) -> None:
        """Free everything that is still gathered; ``failed``: after a forward or backward that did not end.

        DeepSpeed leaves some behind: what a layer without gradient gathered, what it fetched ahead, and the word
        embedding under activation checkpointing.
        """
        from deepspeed.runtime.zero import parameter_offload

        coordinator = self._offload.get_param_coordinator()
        coordinator.release_backward_leftovers()
        if failed:
            stack = parameter_offload.FWD_MODULE_STACK
            stack[:] = [module for module in stack if getattr(module, "is_zero_root", False)]
            if not coordinator.is_invalid_trace():
                coordinator._invalidate_trace()
        coordinator.release_and_reset_all(self._root)

    def _count(self, parameter: Any) -> None:
        """Count a parameter's gathers and releases by wrapping the two functions that DeepSpeed put on it."""
        gather, partition = parameter.all_gather_coalesced, parameter.partition

        def counted_gather(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            chosen = list(parameters)
            size = sum(p.ds_numel for p in chosen)
            self.gathered_numel += size
            self._now += size
            self.peak_numel = max(self.peak_numel, self._now)
            return gather(chosen, *args, **kwargs)

        parameter.all_gather_coalesced = counted_gather
        parameter.partition = self._counted_partition(parameter, partition)

    def _counted_partition(self, parameter: Any, partition: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._now -= parameter.ds_numel
            return partition(*args, **kwargs)

        return counted


def _check_disk_access() -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible():
        raise TopologyError(
            "deepspeed.offload_param.device='nvme' needs DeepSpeed's async_io, which cannot be built here; install libaio"
            " with its headers (Debian: libaio-dev) and a C++ compiler, or use 'cpu'"
        )
    _build_async_io(AsyncIOBuilder())


def check_locked_memory(needed: int, status: Path = Path("/proc/self/status")) -> None:
    """Raise :class:`TopologyError` where this process may not lock the bytes of DeepSpeed's buffers in memory.

    DeepSpeed would end the process without a word. An ordinary user may often lock 8 MB, root without limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if resource.RLIM_INFINITY in (soft, hard) or hard >= 1.1 * needed:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        return
    try:
        rights = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        rights = "0"
    if not int(rights, 16) >> _CAP_IPC_LOCK & 1:
        raise TopologyError(
            f"deepspeed.offload_param.device='nvme' locks {needed / 1e6:.0f} MB of memory for buffers, and this user may lock"
            f" {hard / 1e6:.0f} MB (ulimit -l); lower buffer_count or buffer_size, have the limit raised, or use 'cpu'"
        )


def _build_async_io(builder: Any) -> None:
    """Compile DeepSpeed's extension on first use, one rank at a time.

    torch guards a build by a plain file, which stays behind when the building process is killed and then makes every
    later one wait for ever. The lock held here ends with its process; who holds it may remove such a file.
    """
    from torch.utils.cpp_extension import _get_build_directory

    folders = [Path(_get_build_directory(name, verbose=False)) for name in ("pin_memory", "async_io")]
    with (folders[0].parent / "promptfleet.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for folder in folders:
            (folder / "lock").unlink(missing_ok=True)
        builder.load(verbose=False)


def _start_deepspeed(grid: Grid) -> None:
    """Let DeepSpeed use the process group that is open already."""
    import deepspeed.ops
    from deepspeed import comm

    if grid.device.type == "cpu":
        # Its shared-memory collectives ignore groups, and compile for half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not comm.is_initialized():
        comm.init_distributed("gloo" if grid.device.type == "cpu" else "nccl", auto_mpi_discovery=False, verbose=False)
