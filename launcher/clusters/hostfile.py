"""Hosts of a cluster: hostfiles as DeepSpeed writes them, their filters, and SLURM's short node lists."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prompt_tuning.errors import UserError, reason
from prompt_tuning.messages import show

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_MOST_HOSTS = 100_000


@dataclass(frozen=True)
class Host:
    """A host and its slots (ranks, one a GPU), by number."""

    name: str
    slots: tuple[int, ...]


def read_hostfile(path: Path) -> list[Host]:
    """Hosts of a file with one ``name slots=N`` a line; ``#`` starts a comment. Raises :class:`UserError`.

    A file that is missing or names no host is an error: nobody who gives one wants to train on this machine alone.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"hostfile {path}: cannot be read ({reason(error)}); give the file that lists your hosts"
        ) from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"hostfile {path}:{number}"
        count = re.fullmatch(r"slots=([0-9]{1,6})", words[1]) if len(words) == 2 else None
        if count is None or int(count[1]) < 1:
            raise UserError(f"{where}: {show(line.strip())} is not `name slots=N` with N of at least 1")
        check_host(words[0], where)
        if words[0] in hosts:
            raise UserError(f"{where}: host {words[0]} stands twice; give it one line with all its slots")
        hosts[words[0]] = Host(words[0], tuple(range(int(count[1]))))
    if not hosts:
        raise UserError(f"hostfile {path}: names no host; write one `name slots=N` a line")
    return list(hosts.values())


def check_host(name: str, where: str) -> None:
    """Raise :class:`UserError` unless ``name`` can only be a host's name, whatever it is handed to."""
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise UserError(f"{where}: {show(name)} is no host name; use letters, digits, `.`, `_` and `-`{_alias(name)}")


def _alias(name: str) -> str:
    """The remedy for what people write beside a host's name: ssh's own configuration knows all of it."""
    if not re.fullmatch(r"[A-Za-z0-9._@:\[\]-]+", name):
        return ""
    user, at, host = name.rpartition("@")
    port = host.rpartition(":")[2] if host.count(":") == 1 else ""
    if host.count(":") > 1:
        facts = f"HostName {host.strip('[]')}"
    elif at or port:
        facts = (
            f"HostName {host.partition(':')[0]}"
            + (f", User {user}" if user else "")
            + (f", Port {port}" if port else "")
        )
    else:
        return ""
    return f"; give the host a name of its own in ~/.ssh/config (Host NAME with {facts}) on the machine that starts the job, and write that"


def select(hosts: list[Host], include: str = "", exclude: str = "") -> list[Host]:
    """The hosts and slots that a filter keeps: ``name``, ``name:slot,slot``, several joined by ``@``, as DeepSpeed writes them.

    Raises :class:`UserError` for both filters at once, for what the hosts do not have, and where nothing is left.
    """
    if include and exclude:
        raise UserError("--include and --exclude contradict each other; give one of them")
    if not include and not exclude:
        return hosts
    option, text = ("--include", include) if include else ("--exclude", exclude)
    named = _parse_filter(hosts, option, text)
    kept = []
    for host in hosts:
        slots = named.get(host.name, () if include else None)
        if exclude:
            slots = host.slots if slots is None else tuple(slot for slot in host.slots if slot not in slots)
        if slots:
            kept.append(Host(host.name, tuple(slots)))
    if not kept:
        raise UserError(f"{option} {text}: no slot is left; name fewer")
    return kept


def _parse_filter(hosts: list[Host], option: str, text: str) -> dict[str, tuple[int, ...]]:
    known = {host.name: host for host in hosts}
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split("@"):
        name, colon, numbers = part.partition(":")
        if name not in known:
            raise UserError(f"{option}: host {show(name)} is not in the hostfile, which has {', '.join(known)}")
        if name in named:
            raise UserError(f"{option}: host {name} stands twice")
        if not colon:
            named[name] = known[name].slots
            continue
        slots = [int(number) if re.fullmatch(r"[0-9]{1,6}", number) else -1 for number in numbers.split(",")]
        wrong = [
            number for number, slot in zip(numbers.split(","), slots, strict=True) if slot not in known[name].slots
        ]
        if wrong:
            raise UserError(
                f"{option}: host {name} has no slot {show(wrong[0])}; its slots are 0 to {known[name].slots[-1]}"
            )
        named[name] = tuple(sorted(set(slots)))
    return named


def expand_nodes(text: str) -> list[str]:
    """Host names of a SLURM node list: ``gpu[01-03,7],login`` is gpu01, gpu02, gpu03, gpu7 and login.

    Raises :class:`UserError`.
    """
    names: list[str] = []
    for part in _split_list(text):
        for name in _expand(part, text):
            check_host(name, f"node list {show(text)}")
            names.append(name)
            if len(names) > _MOST_HOSTS:
                raise UserError(f"node list {show(text)}: more than {_MOST_HOSTS:,} hosts")
    return names


def _split_list(text: str) -> Iterator[str]:
    """Parts between commas that stand outside brackets."""
    depth, part = 0, ""
    for letter in text:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if depth not in (0, 1):
            raise UserError(f"node list {show(text)}: brackets do not match")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    if depth:
        raise UserError(f"node list {show(text)}: brackets do not match")
    yield part


def _expand(part: str, text: str) -> Iterator[str]:
    pieces = re.split(r"\[([^\]]*)\]", part)
    choices: list[list[str]] = []
    for index, piece in enumerate(pieces):
        choices.append([piece] if index % 2 == 0 else list(_numbers(piece, text)))
    for combination in itertools.product(*choices):
        yield "".join(combination)


def _numbers(ranges: str, text: str) -> Iterator[str]:
    """Numbers of ``01-03,7``, each as wide as its range's first."""
    for item in ranges.split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", item)
        last = int(found[2] or found[1]) if found else -1
        if found is None or last < int(found[1]) or last - int(found[1]) > _MOST_HOSTS:
            raise UserError(f"node list {show(text)}: {show(item)} is no range of numbers such as 01-16")
        for number in range(int(found[1]), last + 1):
            yield str(number).zfill(len(found[1]))
