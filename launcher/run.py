"""The worker: every rank runs this file, whatever started it.

deepspeed launcher/run.py --config configs/quickstart.json
torchrun --nproc-per-node 2 launcher/run.py --config configs/boolq.json --set train.seed=12
python launcher/run.py --config configs/copa.json --dry-run
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python puts launcher/ on the path, and not the root of the project.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import json
import logging
from contextlib import ExitStack
from typing import Any

from launcher.environment import (
    Process,
    find_process,
    meet,
    name_local_rank,
    quiet_libraries,
    record,
    share_processor,
    threads,
)
from launcher.lock import locked
from launcher.logs import log_to_file, start_logging
from launcher.watch import STOPPED, Stopped, StopRequest, heartbeats
from prompt_tuning.errors import UserError
from prompt_tuning.files import make_folder, write_json
from prompt_tuning.runfile import Run, experiment_difference, load_run

logger = logging.getLogger("launcher.run")


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
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a key (repeatable, JSON value)",
    )
    options.add_argument("--output", metavar="DIR", help="run folder (default: runs/<name of the run>)")
    choice = options.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help="continue an unfinished run; an error if there is none")
    choice.add_argument(
        "--fresh", action="store_true", help="start anew; an older run folder is kept under another name"
    )
    options.add_argument("--dry-run", action="store_true", help="load everything, say what would be trained, and stop")
    options.add_argument("--print-config", action="store_true", help="print the resolved run and stop")
    options.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the worker; returns the exit code."""
    options = parser().parse_args(arguments)
    with StopRequest() as stop:
        return _main(options, stop)


def _main(options: argparse.Namespace, stop: StopRequest) -> int:
    process = Process()
    start_logging(process)
    try:
        process = find_process(options.local_rank)
        start_logging(process)
        run = load_run(options.config, options.set, options.output)
        if options.print_config:
            if process.rank == 0:
                print(json.dumps(run.to_json(), indent=2))
            return 0
        return work(run, process, options, stop)
    except UserError as error:
        # All ranks meet the same mistake; one of each host names it.
        if process.local_rank == 0:
            logger.error("error: %s", error)
    except OSError as error:
        logger.error("error: %s: %s", error.filename or options.output or "the run folder", error.strerror or error)
    except Stopped:
        logger.warning("asked to stop before training began; the same command starts again from what is there")
        return STOPPED
    except KeyboardInterrupt:
        logger.error("interrupted; the same command continues from the last checkpoint")
        return 130
    return 1


def work(run: Run, process: Process, options: argparse.Namespace, stop: StopRequest) -> int:
    """Open the ranks, prepare the run folder, train, report."""
    share_processor()
    import torch
    import torch.distributed as dist

    from launcher.report import print_report
    from model_parallel.collectives import RankLost, broadcast_object
    from model_parallel.grid import TopologyError, check_ranks, local_device, make_grid
    from prompt_tuning.trainer import build_fleet, prove_frozen, train

    quiet_libraries()
    num_threads = threads(process)
    torch.set_num_threads(num_threads)
    tensor, zero = run.shared.parallel.tensor, run.shared.parallel.zero
    try:
        check_ranks(process.world_size, tensor)
    except TopologyError as error:
        raise UserError(str(error)) from None
    device = local_device(process.local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if process.world_size > 1:
        meet(process)
        try:
            dist.init_process_group(backend)
        except RuntimeError as error:
            raise UserError(f"the ranks cannot meet: {str(error).partition(chr(10))[0]}") from None
    elif zero:
        # DeepSpeed asks for a group even where there is nothing to split, as with offload on one GPU.
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if zero:
        name_local_rank(process)
    grid = make_grid(process.rank, process.world_size, device, tensor)
    # A connection of its own: a thread's requests must not wait behind those of the main thread.
    store: Any = dist.distributed_c10d._get_default_store() if process.world_size > 1 else None
    try:
        with heartbeats(store and store.clone(), process.rank, process.world_size, run.shared.launch.timeout_seconds):
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
                    log_to_file(run.output / "log.txt")
                    write_json(run.output / "run.json", run.to_json())
                    write_json(run.output / "environment.json", record(process, num_threads))
                result = train(run, grid, stop)
                if result is None:
                    return STOPPED
                if grid.is_first:
                    print_report([run.output], run.name)
                    print(f"Results and prompts: {run.output}")
                return 0 if not result or result["status"] == "finished" else 3
    except RankLost as error:
        logger.error("stopped with another rank, whose own message says why (%s)", error)
        return 1
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def prepare_folder(run: Run, held: ExitStack, *, resume: bool, fresh: bool) -> bool:
    """Make the run folder ready. False: the run in it has finished. Raises :class:`UserError`.

    A folder that holds a run with other settings is refused; ``fresh`` moves it aside. ``held`` has the folder's lock.
    """
    folder = run.output
    if fresh and any(file.name != ".lock" for file in folder.iterdir()):
        number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.old-{n}").exists())
        aside = folder.with_name(f"{folder.name}.old-{number}")
        folder.rename(aside)
        logger.info("the older run is now %s", aside)
        make_folder(folder)
        held.enter_context(locked(folder))
    if resume:
        from prompt_tuning.checkpoint import newest

        if newest(folder / "checkpoints") is None:
            raise UserError(f"--resume: {folder} has no checkpoint to continue from; leave the flag out to start anew")
    if (folder / "run.json").exists() and _results(folder):
        difference = experiment_difference(folder, run)
        if difference:
            raise UserError(
                f"{folder} holds a run with other settings ({difference});"
                " use --fresh to start anew or --output for another folder"
            )
    return not (folder / "result.json").exists()


def _results(folder: Path) -> bool:
    """Whether a run folder holds anything that another run would spoil, rather than just the record of a failed start."""
    return (folder / "result.json").exists() or any((folder / "checkpoints").glob("step-*"))


if __name__ == "__main__":
    sys.exit(main())
