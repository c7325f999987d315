"""The worker: every rank runs this file, whatever started it.

deepspeed launcher/run.py --config configs/quickstart.json
torchrun --nproc-per-node 2 launcher/run.py --config configs/boolq.json --set train.seed=12
python launcher/run.py --config configs/copa.json --dry-run
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python puts launcher/ on the path, and not the root of the project.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from launcher.options import add_folder, add_overrides
from launcher.ranks.environment import (
    Process,
    find_process,
    name_local_rank,
    quiet_libraries,
    quiet_torch,
    share_processor,
    threads,
)
from launcher.ranks.exit_codes import DIVERGED, INTERRUPTED, STOPPED
from launcher.ranks.logs import log_to_file, start_logging
from launcher.ranks.rendezvous import meet
from launcher.ranks.stop import Stopped, StopRequest
from prompt_tuning.errors import UserError, reason
from prompt_tuning.report.provenance import record
from prompt_tuning.run_folder import prepare_folder, say_what_changed
from prompt_tuning.settings.members import load_run
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.atomic import make_folder, write_json
from prompt_tuning.storage.lock import locked

if TYPE_CHECKING:
    from model_parallel.grid import Grid

logger = logging.getLogger("launcher.run")

GRACE_SECONDS = 20
"""How long the other ranks of a host wait for the first to say a mistake that they all have made."""


def parser() -> argparse.ArgumentParser:
    """The worker's options."""
    options = argparse.ArgumentParser(
        prog="launcher/run.py",
        description="Train the members of a run file.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    options.add_argument(
        "--config", required=True, metavar="FILE", help="run file, for example configs/quickstart.json"
    )
    add_overrides(options)
    add_folder(options)
    options.add_argument("--dry-run", action="store_true", help="load everything, say what would be trained, and stop")
    options.add_argument("--print-config", action="store_true", help="print the resolved run and stop")
    options.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the worker; returns the exit code."""
    options = parser().parse_args(arguments)
    with StopRequest() as stop:
        code = _main(options, stop)
        if code == STOPPED:
            stop.close()
        return code


def _main(options: argparse.Namespace, stop: StopRequest) -> int:
    process, run = Process(), None
    start_logging(process)
    try:
        process = find_process(options.local_rank)
        start_logging(process)
        with alike_on_a_host(process):
            run = load_run(options.config, options.set, options.output)
        if options.print_config:
            if process.rank == 0:
                print(json.dumps(run.to_json(), indent=2))
            return 0
        return work(run, process, options, stop)
    except UserError as error:
        logger.error("error: %s", error)
    except OSError as error:
        if run is not None and process.rank == 0 and not options.dry_run and not run.output.exists():
            logger.error(
                "error: the run folder %s is gone: deleted, or its disk is; the same command starts again", run.output
            )
            return 1
        logger.error("error: %s: %s", error.filename or options.output or "the run folder", error.strerror or error)
    except Stopped as request:
        logger.warning("asked to stop before training began; the same command starts again from what is there")
        return request.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted; the same command continues from the last checkpoint")
        return INTERRUPTED
    except Exception:
        # Not the user's mistake, so the whole story; the record's prefix names rank and host.
        logger.exception("failed; the same command continues from the last checkpoint")
    return 1


@contextmanager
def alike_on_a_host(process: Process) -> Iterator[None]:
    """Before the ranks have met: a mistake that all ranks of a host make, which the first of them says."""
    try:
        yield
    except UserError:
        if process.local_rank > 0:
            # A rank that ends before the first has spoken would have its launcher end that one unheard.
            with suppress(Stopped):
                time.sleep(GRACE_SECONDS)
            sys.exit(1)
        raise


def work(run: Run, process: Process, options: argparse.Namespace, stop: StopRequest) -> int:
    """Bring the ranks together and let them train; the exit code."""
    share_processor()
    quiet_torch()
    import torch
    import torch.distributed as dist

    from launcher.ranks.watch import gather_ranks, open_store, watching
    from model_parallel.collectives import RankLost, open_group
    from model_parallel.grid import TopologyError, check_ranks, local_device, make_grid

    quiet_libraries()
    num_threads = threads(process)
    torch.set_num_threads(num_threads)
    rank, size, limit = process.rank, process.world_size, run.shared.launch.timeout_seconds
    tensor, zero = run.shared.parallel.tensor, run.shared.parallel.zero
    with alike_on_a_host(process):
        try:
            check_ranks(size, tensor)
        except TopologyError as error:
            raise UserError(str(error)) from None
    device = local_device(process.local_rank)
    store = open_store(meet(process), rank, limit) if size > 1 else dist.HashStore()
    hosts = gather_ranks(store, rank, size, limit)
    with watching(store, rank, hosts, limit) as watch:
        try:
            # DeepSpeed asks for a group even where there is nothing to split, as with offload on one GPU.
            if size > 1 or zero:
                open_group(store, rank, size, device, 1.5 * limit)  # one that is silent has been named by then
            if zero:
                name_local_rank(process)
            grid = make_grid(rank, size, device, tensor)
            environment = {**record(num_threads, hosts), "tensor": grid.tensor, "zero": zero}
            return train_in_folder(run, grid, options, stop, environment)
        except RankLost as error:
            stop()  # the launcher may be ending the others by now, which is not the reason
            watch.explain_loss(str(error))
            return 1
        except Exception as error:
            if not watch.says_first(f"{type(error).__name__}: {error}"):
                sys.exit(1)
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"{device} has not enough memory ({reason(error)}); lower train.tokens_per_batch, set"
                " train.activation_checkpointing, or share the backbone among ranks by parallel.tensor and parallel.zero"
            ) from None
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def train_in_folder(
    run: Run, grid: Grid, options: argparse.Namespace, stop: StopRequest, environment: dict[str, Any]
) -> int:
    """Take the run folder, train, report; the exit code."""
    from launcher.pages.scores import print_report
    from model_parallel.collectives import broadcast_object
    from prompt_tuning.report.holdings import prove_frozen
    from prompt_tuning.trainer import build_fleet, train

    if options.dry_run:
        prove_frozen(build_fleet(run, grid))
        return 0
    with ExitStack() as held:
        refusal, is_unfinished = None, True
        if grid.is_first:
            try:
                make_folder(run.output)
                held.enter_context(locked(run.output))
                is_unfinished = prepare_folder(run, held, resume=options.resume, fresh=options.fresh)
            except UserError as error:
                refusal = str(error)
        is_unfinished, refusal = broadcast_object((is_unfinished, refusal), grid)
        if refusal is not None:
            raise UserError(refusal)
        if not is_unfinished:
            logger.info("%s has finished already; use --fresh to run it anew", run.output)
            return 0
        if grid.is_first:
            stop.listen(run.output)
            log_to_file(run.output / "log.txt")
            say_what_changed(run.output, environment)
            write_json(run.output / "run.json", run.to_json())
            write_json(run.output / "environment.json", environment)
        result = train(run, grid, stop)
        if result is None:
            return STOPPED
        if grid.is_first:
            print_report([run.output], run.name)
            print(f"Results and prompts: {run.output}")
        return 0 if result["status"] == "finished" else DIVERGED


if __name__ == "__main__":
    sys.exit(main())
