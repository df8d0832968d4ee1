"""Parts of artifacts, written byte by byte so that any of them can be wrong: zip archives, pickles, TorchScript
archives and PT2 archives made from a golden one. Standard library alone."""
import copy
import json
import struct
import zipfile
import zlib
from pathlib import Path

GOLDEN = Path(__file__).resolve().parent / "golden"


# Zip archives.


def zipped(files, *, root="k/", edit=None, comment=b"", deflate=(), shift=0):
    """The archive of `files`, a list of names and contents. `edit(kind, index, fields)` may change the fields of a
    local header ("local") or of a directory entry ("central") before they are written."""
    out, directory = bytearray(shift), bytearray()
    for index, (name, content) in enumerate(files):
        packed = content
        if name in deflate:
            compressor = zlib.compressobj(6, zlib.DEFLATED, -15)
            packed = compressor.compress(content) + compressor.flush()
        name = name if isinstance(name, bytes) else (root + name).encode()
        base = {
            "name": name, "flags": 0, "method": 0 if packed is content else 8, "crc": zlib.crc32(content),
            "packed": len(packed), "size": len(content), "offset": len(out), "extra": b"", "data": packed,
        }  # fmt: skip
        local, central = dict(base), dict(base)
        if edit:
            edit("local", index, local)
            edit("central", index, central)
        out += struct.pack(
            "<IHHHHHIIIHH", 0x04034B50, 20, local["flags"], local["method"], 0, 0, local["crc"], local["packed"],
            local["size"], len(local["name"]), len(local["extra"]),
        ) + local["name"] + local["extra"] + local["data"]  # fmt: skip
        directory += struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, central["flags"], central["method"], 0, 0, central["crc"],
            central["packed"], central["size"], len(central["name"]), len(central["extra"]), 0, 0, 0, 0,
            central["offset"],
        ) + central["name"] + central["extra"]  # fmt: skip
    count = min(len(files), 0xFFFF)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, count, count, len(directory), len(out), len(comment))
    return bytes(out + directory + end + comment)


def zip64_end(archive, entries, directory_bytes, directory_start):
    """The archive with a zip64 end record that says what it is told to."""
    at = archive.rindex(b"PK\x05\x06")
    body = struct.pack("<HHIIQQQQ", 45, 45, 0, 0, entries, entries, directory_bytes, directory_start)
    record = struct.pack("<IQ", 0x06064B50, len(body)) + body
    locator = struct.pack("<IIQI", 0x07064B50, 0, at, 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive[:at] + record + locator + end


def unzipped(path):
    """The files of a golden archive, without its top folder."""
    with zipfile.ZipFile(GOLDEN / path) as archive:
        return [(name.split("/", 1)[1], archive.read(name)) for name in archive.namelist()]


# Pickles, by opcode.

PROTO = b"\x80\x02"
MARK, STOP, NONE, TRUE, FALSE = b"(", b".", b"N", b"\x88", b"\x89"
EMPTY_TUPLE, EMPTY_DICT, EMPTY_LIST = b")", b"}", b"]"
TUPLE, REDUCE, BUILD, NEWOBJ, BINPERSID, SETITEMS = b"t", b"R", b"b", b"\x81", b"Q", b"u"


def name(module, qualified):
    return b"c" + module.encode() + b"\n" + qualified.encode() + b"\n"


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def tuple_of(*items):
    return MARK + b"".join(items) + TUPLE


def tensor(key="0", sizes=(12,), strides=None, offset=0, elements=12, storage="FloatStorage", graded=True):
    """A tensor as torch pickles it."""
    if strides is None:
        strides, step = [], 1
        for size in reversed(sizes):
            strides.insert(0, step)
            step *= max(size, 1)
    where = tuple_of(text("storage"), name("torch", storage), text(key), text("cpu"), integer(elements)) + BINPERSID
    arguments = tuple_of(
        where, integer(offset), tuple_of(*map(integer, sizes)), tuple_of(*map(integer, strides)),
        TRUE if graded else FALSE, name("collections", "OrderedDict") + EMPTY_TUPLE + REDUCE,
    )  # fmt: skip
    return name("torch._utils", "_rebuild_tensor_v2") + arguments + REDUCE


def module(attributes=b"", kind="K", package="__torch__"):
    """An object of a scripted class with attributes, keys and values in turn."""
    training = text("training") + FALSE
    return name(package, kind) + EMPTY_TUPLE + NEWOBJ + EMPTY_DICT + MARK + training + attributes + SETITEMS + BUILD


# TorchScript archives.


def code(body, fields="", extra="", parameters=""):
    """A class whose forward has the given body, indented by four spaces."""
    lines = "\n".join("    " + line for line in body.strip("\n").split("\n"))
    return (
        f"class K(Module):\n  __parameters__ = [{parameters}]\n  __buffers__ = []\n  training : bool\n{fields}"
        f"  def forward(self: __torch__.K,\n    x: Tensor) -> Tensor:\n{lines}\n{extra}"
    )


def script(body="return torch.relu(x)", *, fields="", extra="", parameters="", data=None, files=(), replace=None, **options):
    """A TorchScript archive; `replace` maps a file's name to other contents, or to None to leave it out."""
    parts = {
        "data.pkl": PROTO + (module() if data is None else data) + STOP,
        "code/__torch__.py": code(body, fields, extra, parameters).encode() if isinstance(body, str) else body,
        "constants.pkl": PROTO + EMPTY_TUPLE + STOP,
        "byteorder": b"little",
        "version": b"3\n",
    }
    parts.update(files)
    parts.update(replace or {})
    return zipped([(name, content) for name, content in parts.items() if content is not None], **options)


def weighted(tensor_pickle, content=struct.pack("<12f", *range(12)), body="return torch.mul(x, self.w)", **options):
    """A TorchScript archive with one weight."""
    return script(
        body, fields="  w : Tensor\n", parameters='"w", ', data=module(text("w") + tensor_pickle), files={"data/0": content}, **options
    )


# PT2 archives.


def program(edit=None, *, source="mlp_gelu.eval.pt2", weights=None, replace=None, raw=None, **options):
    """A golden PT2 archive with its program changed by `edit`, its weights' description by `weights`, or with
    other files in place of its own."""
    parts = dict(unzipped(source))
    if edit:
        model = json.loads(parts["models/model.json"])
        model = edit(model) or model
        parts["models/model.json"] = json.dumps(model).encode()
    if weights:
        place = "data/weights/model_weights_config.json"
        config = json.loads(parts[place])
        weights(config["config"])
        parts[place] = json.dumps(config).encode()
    if raw:
        parts["models/model.json"] = raw(parts["models/model.json"])
    parts.update(replace or {})
    return zipped([(name, content) for name, content in parts.items() if content is not None], **options)


def graph(model):
    return model["graph_module"]["graph"]


def node(model, target):
    """The first node of a target."""
    return next(node for node in graph(model)["nodes"] if node["target"].endswith(target))


def retarget(target, new):
    """An edit that makes one operation another."""

    def edit(model):
        node(model, target)["target"] = new

    return edit


def repeated(count):
    """An edit that puts `count` more additions behind the program."""

    def edit(model):
        whole = graph(model)
        last = node(model, "add.Tensor")
        result = last["outputs"][0]["as_tensor"]["name"]
        meta = whole["tensor_values"][result]
        for number in range(count):
            another = copy.deepcopy(last)
            new = f"more_{number}"
            for argument in another["inputs"]:
                argument["arg"]["as_tensor"]["name"] = result
            another["outputs"][0]["as_tensor"]["name"] = new
            another["metadata"] = {}
            whole["nodes"].append(another)
            whole["tensor_values"][new] = meta
            result = new
        whole["outputs"][0]["as_tensor"]["name"] = result
        model["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"]["name"] = result

    return edit
