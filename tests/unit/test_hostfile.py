"""Hostfiles, filters and node lists: what they mean, and one clear error for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.clusters.hostfile import Host, expand_nodes, read_hostfile, select
from prompt_tuning.errors import UserError

ROOT = Path(__file__).parents[2]
HOSTS = [Host("a-1", (0, 1)), Host("a-2", (0, 1, 2))]


def write(folder, text):
    (folder / "hostfile").write_bytes(text.encode())
    return folder / "hostfile"


@pytest.mark.parametrize(
    "text",
    ["a-1 slots=2\na-2 slots=3\n", "\ufeff# hosts\r\n\r\n  a-1   slots=2 # fast\r\na-2\tslots=3"],
)
def test_a_hostfile_is_hosts_with_slots(tmp_path, text):
    assert read_hostfile(write(tmp_path, text)) == HOSTS


def test_the_example_is_a_hostfile():
    assert all(len(host.slots) == 8 for host in read_hostfile(ROOT / "hostfile.example"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no host; write one `name slots=N` a line"),
        ("# a slots=1\n", "names no host"),
        ("a\n", 'hostfile:1: "a" is not `name slots=N`'),
        ("a slots=1\nb slots=0\n", "hostfile:2: .* with N of at least 1"),
        ("a slots=x", "is not `name slots=N`"),
        ("a slots=1 more", "is not `name slots=N`"),
        ("a slots=1\na slots=2", "hostfile:2: host a stands twice"),
        ("$(reboot) slots=1", r'"\$\(reboot\)" is no host name'),
        ("-oProxyCommand=x slots=1", "is no host name; use letters, digits"),
    ],
)
def test_mistakes_name_their_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_hostfile(write(tmp_path, text))


def test_a_missing_hostfile_is_no_local_run(tmp_path):
    with pytest.raises(UserError, match=r"hostfile .*nowhere: cannot be read .*; give the file that lists your hosts"):
        read_hostfile(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("", "", HOSTS),
        ("a-2", "", [HOSTS[1]]),
        ("a-2:0,2@a-1:1", "", [Host("a-1", (1,)), Host("a-2", (0, 2))]),
        ("", "a-1", [HOSTS[1]]),
        ("", "a-2:1", [HOSTS[0], Host("a-2", (0, 2))]),
        ("", "a-1:0,1", [HOSTS[1]]),
    ],
)
def test_filters_keep_hosts_and_slots(include, exclude, expected):
    assert select(HOSTS, include, exclude) == expected


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        ("a-1", "a-2", "contradict each other"),
        ("b", "", 'host "b" is not in the hostfile, which has a-1, a-2'),
        ("a-1:2", "", 'host a-1 has no slot "2"; its slots are 0 to 1'),
        ("a-1:", "", 'has no slot ""'),
        ("a-1@a-1", "", "host a-1 stands twice"),
        ("", "a-1@a-2", "no slot is left"),
    ],
)
def test_filters_that_do_not_fit_are_refused(include, exclude, message):
    with pytest.raises(UserError, match=message):
        select(HOSTS, include, exclude)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node1", ["node1"]),
        ("a,b-2.c", ["a", "b-2.c"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("n[9-11]x", ["n9x", "n10x", "n11x"]),
        ("r[1-2]n[0,3]", ["r1n0", "r1n3", "r2n0", "r2n3"]),
    ],
)
def test_node_lists_are_expanded(text, expected):
    assert expand_nodes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "a[", "a]", "a[[1]]", "a[1-]", "a[3-1]", "a[x]", "a[]", "a;b", "a b", "a[1-999999999]", ","]
)
def test_what_is_no_node_list_is_refused(text):
    with pytest.raises(UserError, match="node list"):
        expand_nodes(text)


NASTY = st.text(st.sampled_from("ab01-._[],:@=# \t\n;$()'\"`&|<>\\*?~!{}%é\0slot"), max_size=30)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=40), NASTY.map(str.encode)), include=NASTY, exclude=NASTY, nodes=NASTY)
def test_anything_is_hosts_or_one_error(tmp_path, content, include, exclude, nodes):
    """And no name that comes out can mean anything to a shell or be an option."""
    (tmp_path / "hostfile").write_bytes(content)
    names = []
    for make in (
        lambda: [host.name for host in read_hostfile(tmp_path / "hostfile")],
        lambda: [host.name for host in select(HOSTS, include, exclude)],
        lambda: expand_nodes(nodes),
    ):
        try:
            names += make()
        except UserError as error:
            assert str(error) and "\n" not in str(error)
    assert all(
        name.isascii() and set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        for name in names
    )
    assert not any(name.startswith("-") for name in names)


FILTERS = st.dictionaries(
    st.sampled_from(["a-1", "a-2"]), st.sets(st.integers(0, 2), max_size=3), min_size=1, max_size=2
)


@settings(max_examples=200, deadline=None)
@given(named=FILTERS, is_include=st.booleans())
def test_filters_mean_what_deepspeed_means_by_them(named, is_include):
    """Its own reader is the oracle, where the hosts have what is named."""
    from deepspeed.launcher.runner import parse_inclusion_exclusion

    text = "@".join(name + (f":{','.join(map(str, sorted(slots)))}" if slots else "") for name, slots in named.items())
    texts = (text, "") if is_include else ("", text)
    try:
        expected = parse_inclusion_exclusion({"a-1": 2, "a-2": 3}, *texts)
    except ValueError:
        with pytest.raises(UserError):
            select(HOSTS, *texts)
        return
    if not expected:
        with pytest.raises(UserError, match="no slot is left"):
            select(HOSTS, *texts)
        return
    assert {host.name: list(host.slots) for host in select(HOSTS, *texts)} == expected
