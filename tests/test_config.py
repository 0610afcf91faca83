"""What the user may say: layers, kinds, refusals, and the way back to YAML."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mpi_ntkdfl import config, presets
from mpi_ntkdfl.algorithms import METHODS
from mpi_ntkdfl.config import sections
from mpi_ntkdfl.runtime.errors import InputError
from mpi_ntkdfl.runtime.yaml_text import read_yaml, write_yaml
from tests.conftest import examples


def parsed(*layers):
    return config.parse(layers)


def from_text(text, *overrides):
    """What a file and `--set` give, or the InputError they raise."""
    raw = read_yaml(text, "file")
    return parsed(raw or {}, presets.read_overrides(overrides))


def refused(text, *overrides):
    with pytest.raises(InputError) as caught:
        from_text(text, *overrides)
    return str(caught.value)


# ------------------------------------------------------------------------------------------- layers


def test_defaults_are_the_papers():
    c = parsed()
    assert (c.seed, c.rounds, c.clients) == (0, 30, 300)
    assert (c.dataset.name, c.dataset.root) == ("fashion-mnist", None)
    assert (c.partition.kind, c.partition.alpha, c.partition.samples) == ("dirichlet", 0.1, None)
    assert (c.topology.kind, c.topology.degree, c.topology.dynamic) == ("regular", 5, True)
    assert (c.model.hidden, c.model.init, c.model.weights) == ((100,), "shared", None)
    a = c.algorithm
    assert (a.name, a.lr, a.lr_decay, a.taus) == ("ntk-dfl", 0.01, 0.07, (100, 200, 400, 600, 800))
    assert (a.loss, a.jacobian) == ("cross-entropy", "factored")
    assert (c.evaluation.every, c.evaluation.clients, c.output.checkpoint_every) == (1, True, 1)
    assert (c.compute.device, c.compute.dtype, c.compute.threads) == ("auto", "float32", 1)
    assert c.compute.memory_bytes is None


def test_file_over_defaults_and_set_over_file():
    c = from_text(
        "{rounds: 7, clients: 20, model: {hidden: [5, 6]}}", "rounds=9", "model.hidden=[3]"
    )
    assert (c.rounds, c.clients, c.model.hidden, c.seed) == (9, 20, (3,), 0)


def test_sections_merge_while_the_kind_stays():
    c = from_text("topology: {degree: 7, dynamic: false}", "topology.degree=8")
    assert (c.topology.kind, c.topology.degree, c.topology.dynamic) == ("regular", 8, False)


def test_naming_the_same_kind_again_keeps_its_keys():
    c = from_text("topology: {degree: 7}", "topology.kind=regular", "topology.dynamic=false")
    assert (c.topology.degree, c.topology.dynamic) == (7, False)


@pytest.mark.parametrize(
    ("text", "override", "section", "expected"),
    [
        (
            "topology: {degree: 7}",
            "topology.kind=ring",
            "topology",
            sections.RingTopology(kind="ring"),
        ),
        (
            "topology: {kind: small-world, degree: 8, p: 0.5}",
            "topology.kind=regular",
            "topology",
            sections.RegularTopology(kind="regular"),
        ),
        (
            "partition: {alpha: 0.5, samples: 9}",
            "partition.kind=iid",
            "partition",
            sections.IidPartition(kind="iid"),
        ),
        (
            "dataset: {name: mnist, root: /data}",
            "dataset.name=digits",
            "dataset",
            config.dataset_settings("digits"),
        ),
    ],
)
def test_another_kind_starts_from_its_defaults(text, override, section, expected):
    assert getattr(from_text(text, override), section) == expected


def test_keys_of_the_former_kind_are_unknown_to_the_new_one():
    assert "topology.degree: unknown key" in refused("", "topology.kind=ring", "topology.degree=3")


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("raunds=3", "raunds: unknown key, got 3"),
        ("model.heads=3", "model.heads: unknown key"),
        ("algorithm.weight_decay=0.9", "algorithm.weight_decay: unknown key"),
        ("rounds=many", "rounds: Input should be a valid integer, got 'many'"),
        ("rounds=3.5", "rounds: Input should be a valid integer"),
        ("rounds=true", "rounds: Input should be a valid integer"),
        ("rounds='3'", "rounds: Input should be a valid integer"),
        ("rounds=0", "rounds: Input should be greater than or equal to 1"),
        ("clients=-1", "clients: "),
        ("seed=-1", "seed: "),
        ("seed=9223372036854775808", "below 2^63"),
        ("rounds=0x" + "f" * 9000, "below 2^63"),
        ("algorithm.lr=fast", "algorithm.lr: Input should be a valid number, got 'fast'"),
        ("algorithm.lr=0", "algorithm.lr: "),
        ("algorithm.lr=.nan", "algorithm.lr: "),
        ("algorithm.lr=.inf", "algorithm.lr: "),
        ("algorithm.taus=[]", "algorithm.taus: "),
        ("algorithm.taus=[5, 5]", "algorithm.taus: expected ascending"),
        ("algorithm.taus=[0, 5]", "algorithm.taus.0: "),
        ("algorithm.name=sgd", "unknown method 'sgd'; did you mean 'd-psgd'? there are: "),
        ("algorithm=[1]", "algorithm: expected settings as `key: value`, got [1]"),
        ("model.hidden=[0]", "model.hidden.0: "),
        ("model.hidden=wide", "model.hidden: "),
        ("dataset.name=imagenet", "dataset: unknown data set 'imagenet'; there are: "),
        ("dataset=digits", "dataset: "),
        ("topology.kind=torus", "topology.kind: unknown kind 'torus'; there are: complete"),
        ("topology={kind: erdos-renyi, p: 1.5}", "topology.p: "),
        ("topology={kind: file}", "topology.path: Field required"),
        ("partition={kind: file}", "partition.path: Field required"),
        ("partition.alpha=0", "partition.alpha: "),
        ("evaluation.every=0", "evaluation.every: "),
        ("compute.device=gpu", "compute.device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("compute.dtype=float16", "compute.dtype: "),
        # Bounds.
        ("algorithm.lr=1e308", "algorithm.lr: Input should be less than or equal to "),
        ("algorithm.lr_decay=1e308", "algorithm.lr_decay: Input should be less than or equal to "),
        ("compute.threads=2147483648", "threads: Input should be less than or equal to 4096"),
        ("model.hidden=[100000000]", "model.hidden.0: Input should be less than or equal to "),
        (f"model.hidden={[3] * 3000}", "model.hidden: Tuple should have at most 100 items"),
        ("clients=10000000", "clients: Input should be less than or equal to 1000000"),
        ("algorithm.taus=[9223372036854775807]", "algorithm.taus.0: Input should be less than or"),
        (f"algorithm.taus={[*range(1, 20000)]}", "algorithm.taus: Tuple should have at most 1000"),
        ("algorithm={name: dfedavg, lr_factor: 1e9}", "lr_factor: Input should be less than or"),
        (
            "output.time_limit=1e12",
            "output.time_limit: expected a positive number of seconds up to",
        ),
        # Lists and sizes that are none.
        ("model.hidden=100", "model.hidden: expected a list such as [100], got 100"),
        ("algorithm.taus=800", "algorithm.taus: expected a list such as [100, 200], got 800"),
        ("compute.memory_limit=1e9", "compute.memory_limit: expected a positive whole number of"),
        # Misspelt.
        ("raunds=3", "raunds: unknown key, got 3; did you mean 'rounds'?"),
        ("algorithm.mixing=1", "unknown key, got 1; did you mean 'averaging'?"),
        ("algorithm=d-psgd", "such as {name: d-psgd}, got 'd-psgd'"),
        ("topology=ring", "such as {kind: ring}, got 'ring'"),
        ("model.name=ln", "a network of your own needs {name: plugin, network: ln} and --plugin"),
        ("algorithm.name=mine", "spark-style; one of your own needs --plugin FILE.py"),
        ("topology.degre=3", "topology.degre: unknown key, got 3; did you mean 'degree'?"),
        ("algorithm.tau=3", "algorithm.tau: unknown key, got 3; did you mean 'taus'?"),
        ("dataset.rot=x", "dataset.rot: unknown key, got 'x'; did you mean 'root'?"),
        ("compute.thread=2", "compute.thread: unknown key, got 2; did you mean 'threads'?"),
        ("topology.p=0.1", "topology.p: unknown key, got 0.1; there are: degree, dynamic, kind"),
        ("topology.Deg=3", "topology.Deg: unknown key, got 3; did you mean 'degree'?"),
        ("topology.kind=rings", "unknown kind 'rings'; did you mean 'ring'? there are: "),
        ("dataset.name=fashionmnist", "did you mean 'fashion-mnist'? there are: "),
        ("dataset.name=[digits]", "dataset: unknown data set ['digits']"),
        ("algorithm.name=ntkdfl", "unknown method 'ntkdfl'; did you mean 'ntk-dfl'?"),
    ],
)
def test_wrong_settings(override, message):
    assert message in refused("", override)


def test_a_list_of_wrong_entries_is_not_called_too_short():
    message = refused("", "algorithm.taus=['20']")
    assert message == "configuration: algorithm.taus.0: Input should be a valid integer, got '20'"


def test_every_wrong_setting_is_listed():
    message = refused("{raunds: 1, rounds: x}", "model.hidden=[-3]")
    assert all(part in message for part in ("raunds", "rounds", "model.hidden.0"))


@pytest.mark.parametrize(
    ("clients", "topology", "message"),
    [
        (5, "{degree: 5}", "topology.degree must be below clients, got degree 5 with 5 clients"),
        (4, "{kind: small-world, degree: 4}", "topology.degree must be below clients"),
        (7, "{degree: 3}", "a regular graph needs an even degree * clients, got 3 * 7"),
        (2, "{kind: ring}", "a ring needs at least 3 clients, got 2"),
        (9, "{kind: small-world, degree: 3}", "a small-world graph needs an even degree, got 3"),
    ],
)
def test_graphs_that_do_not_exist(clients, topology, message):
    assert message in refused(f"{{clients: {clients}, topology: {topology}}}")


@pytest.mark.parametrize(
    ("clients", "topology"),
    [
        (6, "{degree: 5}"),
        (5, "{kind: small-world, degree: 4}"),
        (8, "{degree: 3}"),
        (3, "{kind: ring}"),
        (1, "{kind: complete}"),
    ],
)
def test_graphs_that_just_exist(clients, topology):
    assert from_text(f"{{clients: {clients}, topology: {topology}}}").clients == clients


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rounds", "--set needs section.key=value, got 'rounds'"),
        ("=3", "--set needs section.key=value"),
        ("model.=3", "--set needs section.key=value"),
        (".rounds=3", "--set needs section.key=value"),
        ("rounds=[", "the value of --set rounds is not valid YAML"),
        ("rounds.a.b=1", "rounds: "),
    ],
)
def test_assignments_that_are_none(assignment, message):
    assert message in refused("", assignment)


def test_assignments_that_contradict_each_other():
    assert "contradicts" in refused("", "model=3", "model.hidden=[3]")


# --------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", "1.e-3", "+1e-3", "1.0e-3"])
def test_numbers_in_scientific_notation(number):
    assert from_text(f"algorithm: {{lr: {number}}}").algorithm.lr == 0.001
    assert from_text("", f"algorithm.lr={number}").algorithm.lr == 0.001


@pytest.mark.parametrize(
    ("written", "read"),
    [
        *(("010", 10), ("08", 8), ("-007", -7), ("1_000", 1000), ("0x1f", 31), ("0b11", 3)),
        *(
            ("010.5", 10.5),
            (".5", 0.5),
            ("1:30", "1:30"),
            ("1:30:00", "1:30:00"),
            ("1:30.5", "1:30.5"),
        ),
        *(("0o17", "0o17"), ("1.2.3", "1.2.3"), ("{on: 1, 3: 2}", {"on": 1, 3: 2}), ("yes", True)),
    ],
)
def test_numbers_are_read_as_people_write_them(written, read):
    assert read_yaml(written, "text") == read
    assert type(read_yaml(written, "text")) is type(read)


@pytest.mark.parametrize(
    "text", ["010", "08", "1:30", "1e-3", "0x1f", "yes", "null", "1:30:00", ".5"]
)
def test_text_that_looks_like_a_number_stays_text_for_every_reader(text):
    """Also for a reader of YAML 1.1, as other programs have."""
    assert read_yaml(write_yaml({"a": text}), "text") == yaml.safe_load(write_yaml({"a": text}))
    assert read_yaml(write_yaml({"a": text}), "text") == {"a": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{rounds: 3, rounds: 3}", "key 'rounds' twice"),
        ("model: {init: shared, hidden: [3], init: shared}", "key 'init' twice"),
        ("? [a]\n: 3", "a key must be plain text"),
        ("rounds: 3\n  clients: 4", "not valid YAML"),
        ("rounds: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("rounds: !!bool maybe", "not valid YAML"),
        ("rounds: !!timestamp now", "not valid YAML"),
        ("rounds: 2001-99-99", "not valid YAML"),
        ("rounds: " + "9" * 5000, "not valid YAML"),
        ("a: " + "[" * 5000, "not valid YAML"),
        ("a: &a [*a]", "aliases are not supported"),
    ],
)
def test_bad_yaml(text, message):
    assert message in refused(text)


def test_aliases_of_aliases_do_not_explode():
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 30))]
    start = time.perf_counter()
    assert "aliases" in refused("\n".join(lines))
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("text", ["3", "[rounds]", "text"])
def test_file_that_is_no_mapping(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match="must hold a mapping of settings"):
        presets.read_source(str(path))


def test_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("# nothing\n")
    assert parsed(*presets.read_source(str(path))) == parsed()


@pytest.mark.parametrize("source", ["no-such-preset", ".", "", "a\0b", "x" * 5000, "~nobody/a"])
def test_source_that_is_none(source):
    with pytest.raises(InputError, match="neither a preset nor a readable YAML file .*quickstart"):
        presets.read_source(source)


def test_a_misspelt_preset_is_told_from_its_neighbours():
    with pytest.raises(InputError, match="did you mean 'quickstart'"):
        presets.read_source("quikstart")
    with pytest.raises(InputError, match="unknown preset 'paper-mnst'; did you mean 'paper-mnist'"):
        presets.text("paper-mnst")


def test_presets_are_valid():
    assert {"paper-fashion-mnist", "paper-mnist", "quickstart"} <= set(presets.names())
    for name in presets.names():
        parsed(*presets.read_source(name))
        assert presets.text(name).startswith("# "), "`presets` lists the first line"


def test_every_method_has_a_preset_on_the_papers_data():
    paper = parsed(*presets.read_source("paper-fashion-mnist"))
    for name, method in METHODS.items():
        preset = "paper-fashion-mnist" + ("" if name == "ntk-dfl" else f"-{name}")
        found = parsed(*presets.read_source(preset))
        assert found == paper.model_copy(update={"algorithm": method.Settings()}), preset


def test_a_file_builds_on_a_preset(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("base: paper-mnist\nrounds: 3\nalgorithm: {lr: 0.02}\n")
    found, mnist = (
        parsed(*presets.read_source(str(path))),
        parsed(*presets.read_source("paper-mnist")),
    )
    assert (found.rounds, found.algorithm.lr, found.partition) == (3, 0.02, mnist.partition)


@pytest.mark.parametrize("base", ["no-such-preset", "[quickstart]", "null", "run.yaml"])
def test_base_must_be_a_preset(tmp_path, base):
    path = tmp_path / "run.yaml"
    path.write_text(f"base: {base}\n")
    with pytest.raises(InputError, match="base must be a preset .*quickstart.*, got"):
        presets.read_source(str(path))


def test_bases_in_a_circle(monkeypatch):
    texts = {"a": "base: b", "b": "base: c", "c": "base: b"}
    monkeypatch.setattr(presets, "names", lambda: list(texts))
    monkeypatch.setattr(presets, "text", texts.get)
    with pytest.raises(InputError, match="a: base leads in a circle: a -> b -> c -> b"):
        presets.read_source("a")


def test_paper_preset_is_the_default():
    assert parsed(*presets.read_source("paper-fashion-mnist")) == parsed()


# ------------------------------------------------------------------------------------- memory sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("2000000000", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("2 gb", 2 * 10**9),
        ("1.5GB", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("3KiB", 3072),
        ("7kB", 7000),
        ("0.1MB", 100_000),
        ("1GiB", 2**30),
        ("null", None),
    ],
)
def test_memory_sizes(text, size):
    assert from_text("", f"compute.memory_limit={text}").compute.memory_bytes == size


@pytest.mark.parametrize(
    "text", ["0", "-5", "0GB", "much", "2TB", "GB", "1e9", "true", "[1]", "0.4", "9" * 400 + "GB"]
)
def test_no_memory_sizes(text):
    assert "compute.memory_limit" in refused("", f"compute.memory_limit={text}")


# ----------------------------------------------------------------------------------- there and back

counts = st.integers(1, 1000)
numbers = st.floats(1e-12, 100, allow_nan=False)
shares_of_one = st.floats(0.001, 1)
texts = st.text(st.characters(exclude_categories=[]), max_size=12) | st.sampled_from(
    ["1e5", "1e-3", "3", "null", "yes", "*a", "a: b", "2001-01-01", "", "~", "0x1f", "\0", "\ud800"]
)


def section(**fields):
    return st.fixed_dictionaries({}, optional=fields)


def kind(name, **fields):
    required = {"kind": st.just(name)} | {k: fields.pop(k) for k in ["path"] if k in fields}
    return st.fixed_dictionaries(required, optional=fields)


PARTITIONS = [
    kind("iid"),
    kind("dirichlet", alpha=numbers, samples=counts | st.none()),
    kind("shards", per_client=counts),
    kind("writer"),
    kind("file", path=texts),
]
TOPOLOGIES = [
    kind("regular", degree=counts, dynamic=st.booleans()),
    kind("ring", dynamic=st.booleans()),
    kind("complete", dynamic=st.booleans()),
    kind("star", dynamic=st.booleans()),
    kind("grid", dynamic=st.booleans()),
    kind("erdos-renyi", p=shares_of_one, dynamic=st.booleans()),
    kind("small-world", degree=counts.map(lambda d: 2 * d), p=shares_of_one),
    kind("file", path=texts),
]
CONFIGS = st.fixed_dictionaries(
    {
        # Even, and more than any degree above: every graph exists.
        "clients": st.integers(1001, 500_000).map(lambda m: 2 * m),
        "partition": st.one_of(PARTITIONS),
        "topology": st.one_of(TOPOLOGIES),
    },
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "rounds": counts,
        "dataset": section(
            name=st.sampled_from(["digits", "breast-cancer", "mnist", "fashion-mnist", "femnist"]),
            root=texts | st.none(),
        ),
        "model": section(
            hidden=st.lists(counts, max_size=3),
            init=st.sampled_from(["shared", "per-client"]),
            weights=texts | st.none(),
        ),
        "algorithm": section(
            lr=numbers,
            lr_decay=numbers,
            taus=st.sets(counts, min_size=1, max_size=5).map(sorted),
            loss=st.sampled_from(["cross-entropy", "squared"]),
            jacobian=st.sampled_from(["factored", "dense"]),
            tolerance=st.floats(1e-15, 0.999),
        ),
        "evaluation": section(every=counts, clients=st.booleans()),
        "output": section(checkpoint_every=counts),
        "compute": section(
            device=st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
            dtype=st.sampled_from(["float32", "float64"]),
            threads=counts,
            memory_limit=st.sampled_from([None, "2GB", 10**9]),
            gpu_aware_mpi=st.booleans(),
        ),
    },
)


@examples(200)
@given(raw=CONFIGS)
def test_round_trip_through_yaml(raw):
    first = parsed(raw)
    text = first.to_yaml()
    assert from_text(text) == first
    plain = yaml.safe_load(text)
    for name, value in raw.items():
        assert (
            plain[name] == value
            if not isinstance(value, dict)
            else plain[name].items() >= value.items()
        )


@pytest.mark.parametrize("topology", ["regular", "ring", "complete", "star", "grid", "erdos-renyi"])
@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "writer"])
def test_kinds_alone_are_enough(topology, partition):
    c = from_text("", f"topology.kind={topology}", f"partition.kind={partition}")
    assert from_text(c.to_yaml()) == c
    assert (c.topology.kind, c.partition.kind) == (topology, partition)


# --------------------------------------------------------------------------------------------- fuzz

KEYS = """
seed rounds clients dataset partition topology model algorithm compute name kind root path degree p
hidden lr taus memory_limit evaluation
"""
VALUES = """
regular ring file mlp ntk-dfl 1e-3 0 -1 3 .nan .inf 1:2 0x1f 2GB é ~ !!int !!set !!binary !!omap
!!float !!bool !!null !!timestamp !!str { } [ ] ' " # % &a *a
"""
MARKS = [": ", "- ", "? ", ", ", "<<: ", "> ", "|\n ", "\n", "\n  ", " ", "\t", "---\n", "\0"]
WORDS = [*KEYS.split(), *VALUES.split(), *MARKS]
snippets = st.lists(st.sampled_from(WORDS), max_size=25).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
trees = st.recursive(
    scalars | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS.split()) | scalars, inner, max_size=3)
    ),
    max_leaves=12,
)


def config_or_input_error(make):
    try:
        assert isinstance(make(), config.Config)
    except InputError as error:
        assert str(error)


@examples(300)
@given(text=snippets | st.text(max_size=40))
def test_any_text_as_a_value(text):
    config_or_input_error(lambda: from_text("", f"rounds={text}"))
    config_or_input_error(lambda: from_text("", text))


@examples(300)
@given(content=st.binary(max_size=40) | (snippets | st.text(max_size=40)).map(str.encode))
def test_any_bytes_as_a_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    config_or_input_error(lambda: parsed(*presets.read_source(str(path))))


@examples(300)
@given(below=st.dictionaries(st.sampled_from(KEYS.split()), trees, max_size=4), above=trees)
def test_any_tree_as_layers(below, above):
    layers = [below, *([above] if isinstance(above, dict) else [])]
    config_or_input_error(lambda: parsed(*layers))
