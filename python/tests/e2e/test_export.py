"""What a seed has learnt, given back to the module it was made of, to PyTorch's loaders, and to other sessions."""

import copy
import gc
import hashlib
import io
import json
import shutil
import subprocess
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import kasmina
import kasmina.torch
from .conftest import BINARY, settled
from .modules import IMAGE, TOKENS, export, twin
from .servers import Urza
from .test_equality import close

TOOL = BINARY.with_name("kasmina")


class Everything(nn.Module):
    """Tied weights, a module in two places, every kind of buffer, a constant, and what nothing reads."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.again = self.norm
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width))
        self.register_buffer("passing", torch.full((width,), 1.25), persistent=False)
        self.unused = nn.Linear(2, 3)
        self.constant = torch.full((width,), 0.75)

    def forward(self, x):
        h = self.second(torch.tanh(self.first(x)))
        return self.again(h) * self.scale * self.passing + self.constant


class Plain(nn.Module):
    """Everything that can be traced."""

    def __init__(self, width=8):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("passing", torch.full((width,), 1.25), persistent=False)

    def forward(self, x):
        return self.norm(self.second(torch.tanh(self.first(x)))) * self.passing


class Views(nn.Module):
    """Parameters that are no storages of their own: a part of one, and one turned."""

    def __init__(self, width=8):
        super().__init__()
        both = torch.randn(2, width)
        self.gain = nn.Parameter(both[0])
        self.shift = nn.Parameter(both[1])
        self.weight = nn.Parameter(torch.randn(width, width).t())

    def forward(self, x):
        return (x * self.gain + self.shift) @ self.weight


ROWS = (6, 8)


def made(kind):
    with torch.random.fork_rng():
        torch.manual_seed(sum(map(ord, kind.__name__)))
        return kind()


@pytest.fixture(scope="module")
def folder(kernels, tmp_path_factory):
    """The suite's kernels and those of this file."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(kernels, folder, dirs_exist_ok=True)
    for kind in (Everything, Plain, Views):
        name = kind.__name__.lower()
        export(made(kind), ROWS, folder / f"{name}.pt2")
        torch.jit.script(made(kind)).save(str(folder / f"{name}-script.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(made(Plain).eval(), torch.randn(ROWS)).save(str(folder / "plain-trace.pt"))
    return folder


@pytest.fixture
def daemon(start, folder):
    return start(folder)


KERNELS = {
    "conv-norm": (lambda: twin("conv-norm"), IMAGE, torch.float32),
    "conv-norm-ts": (lambda: twin("conv-norm"), IMAGE, torch.float32),
    "attention-ts": (lambda: twin("attention"), TOKENS, torch.float32),
    "mlp-bfloat16": (lambda: twin("mlp").bfloat16(), TOKENS, torch.bfloat16),
    "mlp-float16": (lambda: twin("mlp").half(), TOKENS, torch.float16),
    "everything": (lambda: made(Everything), ROWS, torch.float32),
    "everything-script": (lambda: made(Everything), ROWS, torch.float32),
    "plain-trace": (lambda: made(Plain), ROWS, torch.float32),
    "views": (lambda: made(Views), ROWS, torch.float32),
    "views-script": (lambda: made(Views), ROWS, torch.float32),
}


class Nothing(nn.Module):
    """A host that gives nothing, so that a layer in which one seed has an alpha of 1 is that seed."""

    def forward(self, x):
        return torch.zeros_like(x)


def seeded(client, kernel, shape, dtype=torch.float32, **options):
    layer = kasmina.torch.SeededLayer(Nothing(), client, input_shape=shape[1:], dtype=dtype, **options)
    layer.seeds[0].graft(kernel, alpha=1.0)
    return layer


def train(layer, shape, dtype=torch.float32, steps=4):
    """Until every parameter and buffer is another than in the artifact."""
    before = {name: tensor.detach().clone() for name, tensor in layer.seeds[0].state_dict().items()}
    optimizer = torch.optim.SGD(layer.seeds[0].parameters(), 0.1)
    layer.train()
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(shape, dtype=dtype) + 0.5).square().mean().backward()
        optimizer.step()
    after = layer.seeds[0].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    layer.eval()
    return layer


def tolerance(dtype):
    return 1e-4 if dtype is torch.float32 else 2e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_weights_go_back_into_the_module(client, kernel):
    make, shape, dtype = KERNELS[kernel]
    torch.manual_seed(3)
    layer = train(seeded(client, kernel, shape, dtype), shape, dtype)
    original = make().eval()
    weights = layer.export_seed(0, original if kernel.endswith(("-script", "-trace")) else None)
    assert set(weights) == set(original.state_dict())
    assert all(not tensor.requires_grad and tensor.dtype == original.state_dict()[name].dtype
               for name, tensor in weights.items())
    original.load_state_dict(weights, strict=True)
    x = torch.randn(shape, dtype=dtype)
    close(layer(x), original(x), kernel, tolerance(dtype))
    if "num_batches_tracked" in " ".join(weights):
        assert all(int(tensor) == 4 for name, tensor in weights.items() if "num_batches" in name)
    # Copies: what is trained on does not reach them.
    held = {name: tensor.clone() for name, tensor in weights.items()}
    train(layer, shape, dtype, 1)
    assert all(torch.equal(held[name], weights[name]) for name in held)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_saved_seed_is_what_pytorch_loads(client, kernel, tmp_path):
    make, shape, dtype = KERNELS[kernel]
    torch.manual_seed(4)
    layer = train(seeded(client, kernel, shape, dtype), shape, dtype)
    is_script = "-ts" in kernel or kernel.endswith(("-script", "-trace"))
    path = tmp_path / ("trained.pt" if is_script else "trained.pt2")
    saved = layer.save_seed(layer.seeds[0], path)
    assert saved.path == path and saved.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, path.name + ".parent"]
    x = torch.randn(shape, dtype=dtype)
    if is_script:
        close(layer(x), torch.jit.load(path).eval()(x), kernel, tolerance(dtype))
        there = torch.jit.load(path).state_dict()
    else:
        # Exported as it trains: batch statistics are the batch's own, so both are run so.
        program = torch.export.load(path)
        there = copy.deepcopy({**program.state_dict, **program.constants})
        with torch.no_grad():
            ours = copy_of(layer, make).train()
            close(ours(x), program.module()(x), kernel, tolerance(dtype))
    for name, tensor in layer.export_seed(0).items():
        assert torch.equal(there[name], tensor), name
    # What the daemon makes of it as a kernel is the seed, to the last bit.
    with_it = kasmina.torch.SeededLayer(Nothing(), client, input_shape=shape[1:], dtype=dtype)
    with_it.seeds[0].graft(client.offer(path.read_bytes()), alpha=1.0)
    with_it.eval()
    assert torch.equal(with_it(x), layer(x))


def test_values_that_were_moved_out_of_shared_memory_are_saved(client, tmp_path):
    layer = train(seeded(client, "mlp", TOKENS), TOKENS)

    def saved():
        there = torch.export.load(layer.save_seed(0, tmp_path / "k.pt2").path).state_dict
        weights = layer.export_seed(0)
        assert there.keys() == weights.keys()
        assert all(torch.equal(there[name], tensor) for name, tensor in weights.items())
        return there

    weight = layer.seeds[0].get_parameter("up.weight")
    # As an average that is swapped in for an evaluation.
    weight.data = torch.full_like(weight, 0.25)
    assert (saved()["up.weight"] == 0.25).all()
    parameters = list(layer.seeds[0].parameters())
    ones = torch.ones(sum(each.numel() for each in parameters))
    nn.utils.vector_to_parameters(ones, parameters)
    with pytest.warns(UserWarning, match="parts of a larger tensor"):
        assert all((tensor == 1).all() for tensor in saved().values())


def copy_of(layer, make):
    module = make()
    module.load_state_dict(layer.export_seed(0, module))
    return module


def test_a_seed_without_a_kernel_says_so(client):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, "fc", seeds=2, input_shape=TOKENS[1:])
    for call in (layer.export_seed, lambda seed: layer.save_seed(seed, "nowhere")):
        with pytest.raises(kasmina.UsageError, match="seed 1 of layer 'fc' has no kernel"):
            call(1)
        for wrong in (2, -1, True, "0", None):
            with pytest.raises(kasmina.UsageError, match="has the seeds 0 to 1"):
                call(wrong)
    other = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, "other", input_shape=TOKENS[1:])
    other.seeds[0].graft("mlp")
    with pytest.raises(kasmina.UsageError, match="of another layer"):
        layer.export_seed(other.seeds[0])
    with pytest.raises(kasmina.KasminaError) as refused:
        layer.remote.export(0)
    assert refused.value.code == "seed.no_kernel"
    layer.seeds[0].graft("mlp")
    layer.seeds[0].prune()
    with pytest.raises(kasmina.UsageError, match="has no kernel"):
        layer.export_seed(0)


def test_a_module_that_does_not_fit_is_refused(client):
    layer = seeded(client, "mlp", TOKENS)
    with pytest.raises(kasmina.UsageError, match="up.weight is not in the module"):
        layer.export_seed(0, nn.Linear(8, 8))
    with pytest.raises(kasmina.UsageError, match=r"up.weight is \[16, 8\] float32 in the artifact and \[4, 8\]"):
        wrong = twin("mlp")
        wrong.up = nn.Linear(8, 4)
        layer.export_seed(0, wrong)
    with pytest.raises(kasmina.UsageError, match="norm.weight is not in the artifact"):
        layer.export_seed(0, nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8), "norm": nn.LayerNorm(8)}))
    # TorchScript tells no buffer that is not persistent apart; the module does.
    scripted = seeded(client, "everything-script", ROWS)
    assert set(scripted.export_seed(0)) - set(made(Everything).state_dict()) == {"passing"}
    assert list(scripted.export_seed(0, made(Everything))) == list(made(Everything).state_dict())


def test_what_the_wire_refuses(client, daemon):
    layer = seeded(client, "mlp", TOKENS)
    arena, number = client.connection, layer.remote.number

    def ask(**fields):
        return arena.request("export", **{"layer": number, "seed": 0, "offset": 0, "bytes": 0, **fields})

    size = ask()["bytes"]
    block = arena._allocate(size)
    small = ask(offset=block.offset, bytes=size - 1)
    assert small["bytes"] == size and small["digest"] is None
    whole = ask(offset=block.offset, bytes=size)
    assert whole["bytes"] == size and len(whole["digest"]) == 64
    assert whole["parent"]["id"] == "mlp" and "signature" not in whole["parent"]["metadata"]
    for wrong, code in (
        ({"layer": 99}, "layer.unknown"),
        ({"seed": 7}, "seed.unknown"),
        ({"offset": 0, "bytes": size}, "session.protocol"),
        ({"offset": block.offset, "bytes": 1 << 60}, "session.protocol"),
        ({"path": "/etc/passwd"}, "session.protocol"),
    ):
        with pytest.raises(kasmina.KasminaError) as refused:
            ask(**wrong)
        assert refused.value.code == code, wrong


def test_an_export_counts_while_it_is_made(start, folder):
    daemon = start(folder, settings='[limits]\nmax_bytes_per_session = "1MiB"\n')
    with daemon.connect() as client:
        # Of 400 kB, so that it has room as a seed and not three times more.
        wide = nn.Sequential(nn.Linear(8, 6000), nn.ReLU(), nn.Linear(6000, 8))
        layer = seeded(client, client.offer(io_of(wide, TOKENS)), TOKENS)
        with pytest.raises(kasmina.SessionError) as refused:
            layer.remote.export(0)
        assert refused.value.code == "session.quota" and "limits.max_bytes_per_session" in str(refused.value)
        # What was refused holds nothing, and the seed goes on.
        layer.seeds[0].prune()
        assert daemon.status()["sessions"][0]["held_bytes"] == 0


def wide(width):
    """A module whose weights are most of its artifact, and of few enough values that they pack well."""
    module = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 8))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.sign() / 64)
    return module


def packed(artifact):
    """The same archive with all files deflated."""
    source, target = zipfile.ZipFile(io.BytesIO(artifact)), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    return target.getvalue()


def test_an_export_of_a_packed_artifact_counts_what_is_unpacked(start, folder):
    # Of 400 kB each: the seed, and six copies more.
    for limit, is_refused in (("2MiB", True), ("4MiB", False)):
        daemon = start(folder, settings=f'[limits]\nmax_bytes_per_session = "{limit}"\n')
        with daemon.connect() as client:
            layer = seeded(client, client.offer(packed(io_of(wide(6000), TOKENS))), TOKENS)
            if not is_refused:
                assert layer.remote.export(0).artifact
                continue
            with pytest.raises(kasmina.SessionError) as refused:
                layer.remote.export(0)
            assert refused.value.code == "session.quota"


@pytest.mark.parametrize("is_packed", [False, True])
def test_an_export_takes_no_more_memory_than_is_counted(start, folder, is_packed):
    def most(process):
        line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmHWM" in line)
        return 1024 * int(line.split()[1])

    # What is freed goes back to the system at once, so that what is in use can be told.
    daemon = start(folder, environment={"MALLOC_MMAP_THRESHOLD_": "65536"}, settings="[validator]\ntrial = false\n")
    with daemon.connect() as client:
        module = wide(250_000)
        artifact = io_of(module, TOKENS)
        artifact = packed(artifact) if is_packed else artifact
        layer = seeded(client, client.offer(artifact), TOKENS)
        weights = sum(4 * parameter.numel() for parameter in module.parameters())
        with torch.no_grad():
            for parameter in layer.seeds[0].parameters():
                parameter.mul_(2)
        # The pages of the arena count once they were written.
        layer.remote.export(0)
        process = daemon.process.pid
        Path(f"/proc/{process}/clear_refs").write_text("5")
        before = most(process)
        layer.remote.export(0)
        taken = most(process) - before
    # The weights; the artifact twice; and four copies of what is packed.
    counted = weights + 2 * len(artifact) + (4 * weights if is_packed else 0)
    assert weights < taken < counted + (4 << 20), (taken / weights, counted / weights)


def test_weights_can_be_taken_while_the_daemon_is_away(daemon, client, tmp_path):
    torch.manual_seed(6)
    layer = train(seeded(client, "conv-norm", IMAGE), IMAGE)
    before = layer.export_seed(0)
    daemon.kill()
    settled(lambda: not client.connected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer(torch.randn(IMAGE))
    away = layer.export_seed(0)
    assert all(torch.equal(before[name], away[name]) for name in before)
    with pytest.raises(kasmina.ConnectionLost):
        layer.save_seed(0, tmp_path / "k.pt2")
    assert list(tmp_path.iterdir()) == []

    daemon.process = daemon.start()

    def is_back():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer(torch.randn(IMAGE))
        return layer.connected and layer.seeds[0].present

    settled(is_back)
    saved = layer.save_seed(0, tmp_path / "k.pt2")
    there = torch.export.load(saved.path).state_dict
    assert all(torch.equal(before[name], there[name]) for name in before)


@pytest.mark.parametrize("place", ["trainer", "daemon"])
def test_beside_a_host_in_the_daemon_and_of_an_offered_kernel(client, place, tmp_path):
    layer = kasmina.torch.SeededLayer(nn.Linear(8, 8), client, "fc", input_shape=TOKENS[1:], host=place)
    artifact = io_of(twin("mlp"), TOKENS)
    name = client.offer(artifact)
    layer.seeds[0].graft(name, alpha=0.5)
    train(layer, TOKENS)
    saved = layer.save_seed(0, tmp_path / "k.pt2")
    parent = json.loads(saved.parent.read_text())["parent"]
    assert parent["id"] == name and parent["metadata"]["checksum"] == hashlib.sha256(artifact).hexdigest()
    there = torch.export.load(saved.path).state_dict
    assert all(torch.equal(tensor, there[key]) for key, tensor in layer.export_seed(0).items())
    if place == "daemon":
        with pytest.raises(kasmina.UsageError, match="its host is layer.host"):
            layer.export_seed(layer.remote.host)
        # The host is a kernel too, and Rust and NumPy trainers have nothing else of it.
        exported = layer.remote.export(layer.remote.host)
        assert exported.sha256 == hashlib.sha256(exported.artifact).hexdigest()


def io_of(module, shape):
    archive = io.BytesIO()
    program = torch.export.export(
        module.train(), (torch.randn(shape),), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=4096)},)
    )
    torch.export.save(program, archive)
    return archive.getvalue()


def test_a_kernel_that_was_unloaded_still_gives_its_weights(start, folder, tmp_path):
    daemon = start(folder, settings='[engine]\nrecovery_backoff = "60s"\n')
    with daemon.connect() as client:
        layer = train(seeded(client, "mlp", TOKENS), TOKENS)
        good = layer.export_seed(0)
        with torch.no_grad():
            layer.seeds[0].get_parameter("up.weight").fill_(float("nan"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(64):
                layer.train()(torch.randn(TOKENS))
                if layer.seeds[0].state == "error_recovery":
                    break
        assert layer.seeds[0].state == "error_recovery"
        weights = layer.export_seed(0)
        assert weights["up.weight"].isnan().all() and torch.equal(weights["up.bias"], good["up.bias"])
        saved = layer.save_seed(0, tmp_path / "k.pt2")
        assert torch.export.load(saved.path).state_dict["up.weight"].isnan().all()


def test_a_file_is_replaced_whole_and_an_old_signature_goes(client, tmp_path):
    layer = train(seeded(client, "mlp", TOKENS), TOKENS)
    path = tmp_path / "k.pt2"
    path.write_bytes(b"an older artifact")
    (tmp_path / "k.pt2.sig").write_text("ab" * 64)
    saved = layer.save_seed(0, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["k.pt2", "k.pt2.parent"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == saved.sha256
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(FileNotFoundError):
        layer.save_seed(0, tmp_path / "nowhere" / "k.pt2")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken.sig").write_text("of a folder")
    with pytest.raises(IsADirectoryError):
        layer.save_seed(0, tmp_path / "taken")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["k.pt2", "k.pt2.parent", "plain", "taken", "taken.sig"]
    first = saved.sha256
    train(layer, TOKENS, steps=1)
    assert layer.save_seed(0, path).sha256 != first
    gc.collect()
    # Exports give their blocks back.
    free = client.connection._heap.free_bytes
    for _ in range(3):
        layer.save_seed(0, path)
    assert client.connection._heap.free_bytes == free


def run(*words):
    return subprocess.run([str(TOOL), *map(str, words)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kernel", ["conv-norm", "conv-norm-ts", "everything", "mlp-bfloat16"])
def test_a_trained_seed_is_published_and_grafted_by_another_session(serve, start, folder, tmp_path, kernel):
    _, shape, dtype = KERNELS[kernel]
    catalogue = tmp_path / "catalogue"
    shutil.copytree(folder, catalogue)
    entry = {
        "id": kernel, "status": "deployed", "blueprint_id": "a-blueprint", "compilation_pipeline": "tests",
        "kernel_binary_ref": next(catalogue.glob(f"{kernel}.pt*")).name,
        "metadata": {"name": "what people call it", "input_shape": list(shape[1:]),
                     "checksum": hashlib.sha256(next(catalogue.glob(f"{kernel}.pt*")).read_bytes()).hexdigest()},
    }
    (catalogue / f"{kernel}.json").write_text(json.dumps(entry))
    urza = serve(lambda: Urza(catalogue))
    settings = urza.settings(timeout="20s") + f'allowed_folders = ["{catalogue}"]\n'
    daemon = start(origin=settings)
    torch.manual_seed(8)
    with daemon.connect() as client:
        layer = train(seeded(client, kernel, shape, dtype), shape, dtype)
        saved = layer.save_seed(0, tmp_path / ("trained.pt" if "-ts" in kernel else "trained.pt2"))
        x = torch.randn(shape, dtype=dtype)
        expected = layer(x).clone()
    accepted = run("validate", saved.path)
    assert accepted.returncode == 0, accepted

    def publish(path, name):
        return run("publish", path, "--config", daemon.config, "--name", name, "--to", catalogue)

    done = publish(saved.path, "trained-1")
    assert done.returncode == 0 and f"trained    from {kernel}" in done.stdout and saved.sha256 in done.stdout, done
    report = json.loads((catalogue / "trained-1.json").read_text())["validation_report"]
    assert report["parent_kernel_id"] == kernel and report["checksum"] == saved.sha256
    source = next(folder.glob(f"{kernel}.pt*")).read_bytes()
    assert report["parent_checksum"] == hashlib.sha256(source).hexdigest()
    described = json.loads((catalogue / "trained-1.json").read_text())
    assert described["blueprint_id"] == "a-blueprint" and report["name"] == "what people call it"
    assert report["input_shape"] == list(shape[1:])
    again = publish(saved.path, "trained-1")
    assert again.returncode == 0 and "is there already" in again.stdout, again
    taken = publish(next(folder.glob("attention.pt2")), "trained-1")
    assert taken.returncode != 0 and "published already" in taken.stderr, taken

    with start(origin=settings).connect() as other:
        grafted = seeded(other, "trained-1", shape, dtype).eval()
        assert torch.equal(grafted(x), expected)
        # A child has its own child.
        second = train(grafted, shape, dtype, 1).save_seed(0, tmp_path / "second.pt2")
        assert json.loads(second.parent.read_text())["parent"]["id"] == "trained-1"

    # What it comes from is of these bytes alone.
    moved = tmp_path / "other.pt2"
    moved.write_bytes(next(folder.glob("mlp.pt2")).read_bytes())
    shutil.copy(saved.parent, tmp_path / "other.pt2.parent")
    refused = publish(moved, "trained-2")
    assert refused.returncode == 2 and "export the seed again" in refused.stderr, refused


def test_into_a_folder_and_signed(daemon, client, folder, tmp_path):
    layer = train(seeded(client, "mlp", TOKENS), TOKENS)
    saved = layer.save_seed(0, tmp_path / "k.pt2")
    assert run("keygen", "--out", tmp_path / "key.pem").returncode == 0
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    words = ["publish", saved.path, "--name", "mine", "--sign", tmp_path / "key.pem", "--to", kernels, "--json"]
    done = run(*words)
    assert done.returncode == 0 and json.loads(done.stdout)["digest"] == saved.sha256, done
    entry = json.loads((kernels / "mine.json").read_text())
    assert entry["validation_report"]["parent_kernel_id"] == "mlp" and entry["blueprint_id"] == "mine"
    assert len(entry["validation_report"]["signature"]) == 128


def test_a_layer_that_is_copied_or_loaded_exports_as_well(client):
    layer = train(seeded(client, "everything", ROWS), ROWS)
    copied = copy.deepcopy(layer)
    weights = layer.export_seed(0)
    assert all(torch.equal(weights[name], tensor) for name, tensor in copied.export_seed(0).items())
