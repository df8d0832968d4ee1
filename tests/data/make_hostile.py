"""Writes hostile and broken artifacts, each named for its trick, and what the validator has to say of them.

    python tests/data/make_hostile.py FOLDER CANARY

`manifest.json` lists for each file the rule that refuses it, a part of the reason, and the input's sizes where the
archive does not say them. CANARY is a path that the payloads try to create. Standard library alone; two runs give
the same bytes. Nothing here is committed: tests/hostile.rs makes it anew.
"""
import json
import struct
import sys
from pathlib import Path

from hostile_archives import (
    BINPERSID, BUILD, EMPTY_DICT, EMPTY_LIST, EMPTY_TUPLE, FALSE, MARK, NEWOBJ, NONE, PROTO, REDUCE, SETITEMS, STOP,
    TUPLE, code, graph, integer, module, name, node, program, repeated, retarget, script, tensor, text, tuple_of,
    unzipped, weighted, zip64_end, zipped,
)  # fmt: skip

READABLE, LIMITS, WHITELIST = "archive.readable", "archive.limits", "archive.whitelist"
OPS, SHAPES, FINITE, PARAMETERS = "ops.whitelist", "shapes.declared", "weights.finite", "parameters.limit"
MEMORY, FLOPS, TRIAL, SIGNATURE = "memory.limit", "flops.limit", "trial.finite", "signature.trusted"
MODULES = "modules.whitelist"
SAMPLE = "12"
FLOATS = struct.pack("<12f", *range(12))


def zips():
    good = script()
    files = [("data.pkl", PROTO + module() + STOP), ("code/__torch__.py", code("return x").encode())]
    yield "empty", b"", READABLE, ""
    yield "text", b"#!/bin/sh\ntouch canary\n", READABLE, ""
    yield "zip-empty-archive", b"PK\x05\x06" + bytes(18), READABLE, ""
    yield "zip-bare-pickle", PROTO + module() + STOP, READABLE, ""
    for part, share in (("directory", -10), ("middle", len(good) // 2), ("header", 20)):
        yield f"zip-cut-in-{part}", good[:share], READABLE, ""
    yield "zip-flipped-bit", good[:60] + bytes([good[60] ^ 4]) + good[61:], READABLE, "checksum"

    def change(kind, **fields):
        return lambda where, index, header: header.update(fields) if where in kind and index == 0 else None

    both, central, local = ("local", "central"), ("central",), ("local",)
    yield "zip-encrypted", zipped(files, edit=change(both, flags=1)), READABLE, ""
    yield "zip-method-lzma", zipped(files, edit=change(both, method=14)), READABLE, ""
    yield "zip-size-4-gib", zipped(files, edit=change(central, size=0xFFFFFFFE, packed=0xFFFFFFFE)), LIMITS, "bytes in a file"
    yield "zip-offset-past-end", zipped(files, edit=change(central, offset=0xFFFFFFF0)), READABLE, ""
    yield "zip-names-disagree", zipped(files, edit=change(local, name=b"k/data.pkx")), READABLE, ""
    yield "zip-crc-disagrees", zipped(files, edit=change(both, crc=1)), READABLE, "checksum"
    for trick, path in (
        ("traversal", b"k/../../../../etc/cron.d/canary"), ("absolute", b"/etc/canary"), ("backslash", b"k\\..\\canary"),
        ("nul", b"k/data.pkl\0.txt"), ("not-utf8", b"k/\xff\xfe"), ("other-root", b"other/data.pkl"),
        ("dots", b"k/./data.pkl"),
    ):  # fmt: skip
        yield f"zip-name-{trick}", zipped([*files, (path, b"x")]), READABLE, ""
    yield "zip-name-too-long", zipped([*files, ("n" * 5000, b"x")]), LIMITS, ""
    yield "zip-duplicate-entry", zipped([*files, files[0]]), READABLE, "twice"
    yield "zip-same-bytes-twice", zipped(
        [*files, ("data/0", FLOATS)], edit=lambda kind, index, h: h.update(offset=0) if index == 2 else None
    ), READABLE, ""  # fmt: skip
    many = zipped([*files, *((f"n{number}", b"") for number in range(70_000 - 2))])
    yield "zip-70000-entries", many, READABLE, "zip64"
    end = many.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", many[end + 12 : end + 20])
    yield "zip64-70000-entries", zip64_end(many, 70_000, size, start), LIMITS, "files"
    yield "zip64-2-to-the-63-entries", zip64_end(good, 2**63, 100, 0), LIMITS, "files"
    yield "zip64-directory-at-2-to-the-64", zip64_end(good, 5, 2**64 - 1, 2**64 - 1), READABLE, ""
    extra = struct.pack("<HHQQ", 1, 16, 2**63, 2**63)
    yield "zip64-sizes-2-to-the-63", zipped(
        files, edit=change(central, size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=extra)
    ), LIMITS, "bytes in a file"  # fmt: skip
    bomb = zipped([("data/0", bytes(200 << 20)), *files], deflate=("data/0",))
    yield "zip-bomb", bomb, LIMITS, "unpacked"
    reads = PROTO + module(text("w") + tensor()) + STOP
    yield "zip-bomb-with-modest-size", zipped(
        [("data.pkl", reads), files[1], ("data/0", bytes(64 << 20)), ("pad", bytes(2 << 20))], deflate=("data/0",),
        edit=lambda kind, index, h: h.update(size=100) if index == 2 else None,
    ), READABLE, "size"  # fmt: skip
    inner = zipped([("data/0", bytes(8 << 20))], deflate=("data/0",))
    yield "zip-within-zip", zipped([("k.zip", inner)]), WHITELIST, "neither"
    yield "zip-nothing-of-torch", zipped([("readme", b"hello")]), WHITELIST, "neither"
    yield "zip-torch-save", zipped([("data.pkl", PROTO + EMPTY_DICT + STOP), ("data/0", FLOATS)]), WHITELIST, "torch.save"
    yield "zip-big-endian", script(replace={"byteorder": b"big"}), WHITELIST, "big-endian"
    yield "zip-junk-before", b"\x7fELF" + bytes(60) + good, READABLE, ""


def pickles(canary):
    def attack(payload):
        return script(fields="  w : Tensor\n", data=module(text("w") + payload))

    def call(package, function, *arguments):
        return name(package, function) + tuple_of(*arguments) + REDUCE

    touch = f"touch {canary}"
    for package, function, argument in (
        ("os", "system", touch), ("posix", "system", touch), ("subprocess", "check_output", touch),
        ("builtins", "eval", f"open({canary!r}, 'w')"), ("builtins", "exec", f"open({canary!r}, 'w')"),
        ("__builtin__", "open", canary), ("torch.hub", "load", "attacker/repo"), ("torch", "load", canary),
        ("torch.jit", "load", canary), ("importlib", "import_module", "os"), ("torch.serialization", "load", canary),
        ("torch._C", "import_ir_module", canary), ("shutil", "rmtree", "/tmp/canary"), ("webbrowser", "open", "http://x"),
        ("torch.utils.cpp_extension", "load_inline", canary), ("numpy", "load", canary), ("pickle", "loads", "cos"),
    ):  # fmt: skip
        yield f"pickle-global-{package}.{function}", attack(call(package, function, text(argument))), WHITELIST, function
    deep = b"\x8c\x09posix.sys" + b"\x8c\x06system" + b"\x93"
    yield "pickle-stack-global", attack(deep + tuple_of(text(touch)) + REDUCE), READABLE, "none that torch writes"
    memo = text("posix") + b"q\xf0" + text("system") + b"q\xf1" + b"0" + b"h\xf0" + b"h\xf1" + b"\x93"
    yield "pickle-stack-global-by-memo", attack(memo + tuple_of(text(touch)) + REDUCE), READABLE, ""
    yield "pickle-inst", attack(MARK + text(touch) + b"iposix\nsystem\n"), READABLE, ""
    yield "pickle-obj", attack(MARK + name("posix", "system") + text(touch) + b"o"), WHITELIST, ""
    yield "pickle-newobj-ex", attack(name("posix", "system") + tuple_of(text(touch)) + EMPTY_DICT + b"\x92"), WHITELIST, ""
    yield "pickle-extension-registry", attack(b"\x82\x01"), READABLE, ""
    yield "pickle-call-of-a-tensor", attack(tensor() + tuple_of(text("x")) + REDUCE), READABLE, ""
    yield "pickle-global-in-constants", script(
        replace={"constants.pkl": PROTO + call("posix", "system", text(touch)) + STOP}
    ), WHITELIST, "posix"  # fmt: skip
    yield "pickle-build-on-a-number", attack(integer(1) + EMPTY_DICT + BUILD), READABLE, ""
    yield "pickle-build-of-a-class", attack(name("__torch__", "K") + EMPTY_DICT + BUILD), READABLE, ""
    yield "pickle-persistent-id-number", script(
        "return torch.add(x, self.w)", fields="  w : Tensor\n", data=module(text("w") + integer(7) + BINPERSID)
    ), None, "", SAMPLE  # fmt: skip
    yield "pickle-persistent-id-path", weighted(tensor("../../../../etc/passwd"), b""), READABLE, ""
    yield "pickle-unknown-opcode", attack(b"\xff"), READABLE, ""
    yield "pickle-protocol-200", script(data=b"\x80\xc8" + module()), READABLE, ""
    yield "pickle-no-stop", script(replace={"data.pkl": PROTO + module()}), READABLE, ""
    yield "pickle-empty", script(replace={"data.pkl": b""}), READABLE, ""
    yield "pickle-stack-underflow", attack(TUPLE), READABLE, ""
    yield "pickle-unknown-memo", attack(b"h\x77"), READABLE, ""
    yield "pickle-text-of-4-gib", attack(b"X\xff\xff\xff\xff"), READABLE, ""
    yield "pickle-text-of-2-to-the-63", attack(b"\x8d" + struct.pack("<Q", 2**63)), READABLE, ""
    yield "pickle-long-of-2-gib", attack(b"\x8b\xff\xff\xff\x7f"), READABLE, ""
    yield "pickle-long-of-200-bytes", attack(b"\x8a\xc8" + b"\x7f" * 200), READABLE, ""
    yield "pickle-deep-lists", attack(EMPTY_LIST * 150_000 + b"a" * 149_999), LIMITS, ""
    yield "pickle-nested-tuples", attack(NONE + b"\x85" * 200_000), LIMITS, ""
    yield "pickle-endless-memo", attack(
        b"".join(b"Nr" + struct.pack("<I", slot) + b"0" for slot in range(300_000)) + NONE
    ), LIMITS, ""  # fmt: skip
    yield "pickle-many-steps", attack(b"N0" * 1_200_000 + NONE), LIMITS, ""
    # Each level holds the one before twice: a billion leaves in 90 bytes.
    doubling = EMPTY_LIST + b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(30))
    yield "pickle-doubling-tuples", attack(doubling), LIMITS, "nesting"
    selfish = EMPTY_LIST + b"q\x00h\x00a"
    yield "pickle-list-in-itself", attack(selfish), LIMITS, "nesting"
    own = name("__torch__", "K") + EMPTY_TUPLE + NEWOBJ + b"q\x00" + EMPTY_DICT + MARK + text("training") + FALSE
    yield "pickle-module-in-itself", script(
        "return (self.k).forward(x, )", fields="  k : __torch__.K\n", data=own + text("k") + b"h\x00" + SETITEMS + BUILD
    ), LIMITS, "", SAMPLE  # fmt: skip
    nest = module()
    for _ in range(400):
        nest = module(text("k") + nest)
    yield "pickle-modules-400-deep", script(fields="  k : __torch__.K\n", data=nest), LIMITS, ""
    shared = module(kind="L") + b"q\x00"
    for level in range(40):
        shared = module(text("a") + shared + text("b") + b"h" + bytes([level])) + b"q" + bytes([level + 1])
    yield "pickle-modules-shared-2-to-the-40", script(
        "return torch.add((self.a).forward(x, ), (self.b).forward(x, ))", fields="  a : __torch__.K\n  b : __torch__.K\n",
        extra="class L(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n"
        "  def forward(self: __torch__.L,\n    x: Tensor) -> Tensor:\n    return x\n", data=shared,
    ), None, "nodes", SAMPLE  # fmt: skip
    # The same over a weight, which has a name for each way to it.
    known = module(text("w") + tensor(), kind="L") + b"q\x00"
    for level in range(40):
        known = module(text("a") + known + text("b") + b"h" + bytes([level])) + b"q" + bytes([level + 1])
    yield "pickle-weights-shared-2-to-the-40", script(
        "return (self.a).forward(x, )", fields="  a : __torch__.K\n  b : __torch__.K\n",
        extra='class L(Module):\n  __parameters__ = ["w", ]\n  __buffers__ = []\n  w : Tensor\n  training : bool\n'
        "  def forward(self: __torch__.L,\n    x: Tensor) -> Tensor:\n    return x\n", data=known,
        files={"data/0": bytes(48)},
    ), LIMITS, "names", SAMPLE  # fmt: skip
    yield "pickle-unknown-class", script(data=module(package="__torch__.missing")), READABLE, ""
    yield from mentions()


def mentions():
    """What is written once and named many times: the archive is small, what it unfolds to is not."""

    def put(slot):
        return b"q" + bytes([slot]) + b"0"

    def get(slot):
        return b"h" + bytes([slot])

    def many(slot, count):
        return EMPTY_LIST + MARK + get(slot) * count + b"e"

    where = tuple_of(text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(12)) + BINPERSID
    ones = integer(1) + put(9) + MARK + get(9) * 50_000 + TUPLE + put(10)
    flat = name("torch._utils", "_rebuild_tensor_v2") + tuple_of(where, integer(0), get(10), get(10), FALSE) + REDUCE
    yield "mentions-of-a-tensor-of-50000-dimensions", script(
        data=ones + flat + put(1) + module(text("w") + many(1, 50_000)), files={"data/0": bytes(48)}
    ), READABLE, "dimensions"  # fmt: skip
    yield "mentions-of-a-long-text", script(data=text("s" * 4096) + put(1) + module(text("l") + many(1, 50_000))), LIMITS, "names"
    long = "L" * 4000
    several = b"".join(text(f"k{n}") + get(1) + EMPTY_TUPLE + NEWOBJ for n in range(5000))
    yield "mentions-of-a-long-class", script(
        data=name("__torch__", long) + put(1) + module(several), extra=f"class {long}(Module):\n  training : bool\n"
    ), LIMITS, "names"  # fmt: skip
    children = b"".join(text(f"c{n}") + module(kind="L") for n in range(5000))
    deep = module(children, kind="L")
    for _ in range(50):
        deep = module(get(2) + deep, kind="L")
    yield "mentions-of-a-long-path", script(
        data=text("p" * 4000) + put(2) + deep, extra="class L(Module):\n  training : bool\n"
    ), LIMITS, "names"  # fmt: skip
    names = ", ".join(f'"{n}"' for n in range(100_000))
    tensors = b"".join(text(f"t{n}") + get(1) for n in range(20_000))
    yield "mentions-of-an-undeclared-tensor", script(
        "return torch.mul(x, self.w)", data=tensor(sizes=(0,)) + put(1) + module(tensors), parameters=names, files={"data/0": bytes(48)}
    ), READABLE, "no attribute", SAMPLE  # fmt: skip
    big = (text("s" * 4000) + b"0") * 5000
    yield "pickle-of-20-mb", script(data=big + module()), LIMITS, "bytes of pickle"
    both = text("w") + tensor() + text("w") + tensor("1")
    yield "pickle-attribute-twice", script(
        fields="  w : Tensor\n", parameters='"w", ', data=module(both), files={"data/0": bytes(48), "data/1": bytes(48)}
    ), READABLE, "two attributes"  # fmt: skip
    for title, given in (("escapes", "w\x1b[31m"), ("nothing", "")):
        yield f"pickle-parameter-named-{title}", script(
            parameters=f'"{given}", ', data=module(text(given) + tensor()), files={"data/0": bytes(48)}
        ), READABLE, "name"  # fmt: skip


def tensors():
    yield "tensor-past-storage", weighted(tensor(sizes=(13,), elements=13)), READABLE, "past the end", SAMPLE
    yield "tensor-offset-past-storage", weighted(tensor(offset=1)), READABLE, "past the end", SAMPLE
    yield "tensor-size-2-to-the-62", weighted(tensor(sizes=(2**62,))), READABLE, "", SAMPLE
    yield "tensor-sizes-overflow", weighted(tensor(sizes=(2**32, 2**32))), READABLE, "", SAMPLE
    yield "tensor-sizes-overflow-behind-zero", weighted(tensor(sizes=(0, 2**62, 2**62))), READABLE, "", SAMPLE
    yield "tensor-offset-2-to-the-63", weighted(tensor(offset=2**63 - 1)), READABLE, "", SAMPLE
    yield "tensor-negative-size", weighted(tensor(sizes=(-12,))), READABLE, "", SAMPLE
    yield "tensor-negative-stride", weighted(tensor(strides=(-1,), offset=11)), READABLE, "", SAMPLE
    yield "tensor-negative-offset", weighted(tensor(offset=-1)), READABLE, "", SAMPLE
    yield "tensor-stride-2-to-the-62", weighted(tensor(strides=(2**62,))), READABLE, "", SAMPLE
    yield "tensor-expanded-to-a-gigabyte", weighted(tensor(sizes=(1 << 28,), strides=(0,))), LIMITS, "bytes in all tensors", SAMPLE
    yield "tensor-of-70-dimensions", weighted(tensor(sizes=(1,) * 70)), None, "", SAMPLE
    yield "tensor-without-storage", weighted(tensor("9")), READABLE, "missing", SAMPLE
    yield "tensor-of-complex-numbers", weighted(tensor(storage="ComplexFloatStorage")), WHITELIST, "", SAMPLE
    yield "tensor-of-quantized-numbers", weighted(tensor(storage="QInt8Storage")), WHITELIST, "", SAMPLE
    yield "tensor-nan", weighted(tensor(), struct.pack("<12f", *([1.0] * 11), float("nan"))), FINITE, "NaN", SAMPLE
    yield "tensor-infinite", weighted(tensor(), struct.pack("<12f", *([1.0] * 11), float("inf"))), FINITE, "inf", SAMPLE
    eleven = 11_000_000
    big = tensor(sizes=(eleven,), elements=eleven)
    yield "tensor-11-million-parameters", script(
        "return x", fields="  w : Tensor\n", parameters='"w", ', data=module(text("w") + big), files={"data/0": bytes(4 * eleven)}
    ), PARAMETERS, "11000000", SAMPLE  # fmt: skip


def scripts(canary):
    def body(trick, lines, rule, reason="", **options):
        return f"code-{trick}", script(lines, **options), rule, reason, SAMPLE

    yield body("while-true", "while True:\n  pass\nreturn x", LIMITS)
    yield body("while-true-traced", "_0 = True\nwhile _0:\n  _0 = True\nreturn x", LIMITS)
    yield body("for-2-to-the-62", f"for _0 in range({2**62}):\n  x0 = x\nreturn x", LIMITS)
    yield body("loops-in-loops", "for _0 in range(99999):\n  for _1 in range(99999):\n    for _2 in range(99999):\n      "
               "y = 1\nreturn x", LIMITS)  # fmt: skip
    yield body("recursion", "return (self).forward(x, )", LIMITS)
    yield body("recursion-in-two", "return (self).g(x, )", LIMITS, extra="  def g(self: __torch__.K,\n    x: Tensor) -> "
               "Tensor:\n    return (self).forward(x, )\n")  # fmt: skip
    yield body("parentheses-200000-deep", "return " + "(" * 200_000 + "x" + ")" * 200_000, LIMITS)
    yield body("brackets-200000-deep", "y = " + "[" * 200_000 + "]" * 200_000 + "\nreturn x", LIMITS)
    yield body("minus-200000-times", "y = " + "-" * 200_000 + "1\nreturn x", LIMITS)
    yield body("attributes-200000-long", "y = x" + ".a" * 200_000 + "\nreturn x", LIMITS)
    yield body("types-200000-deep", "return x", LIMITS, fields="  q : " + "List[" * 200_000 + "int" + "]" * 200_000 + "\n")
    yield body("ifs-200-deep", "".join("  " * d + "if True:\n" for d in range(200)) + "  " * 200 + "y = 1\nreturn x", LIMITS)
    yield body("a-million-statements", "y = 1\n" * 1_000_000 + "return x", LIMITS)
    # What fits into the limit on code and grows most when it is parsed.
    for kind, unit in (("passes", "pass\n"), ("calls", "f()\n"), ("assignments", "y=1\n")):
        yield body(f"2-megabytes-of-{kind}", unit * ((2 << 20) // (len(unit) + 4) - 200) + "return q", None)
    for kind, unit in (("ones", "1,"), ("names", "a,"), ("lists", "[],"), ("negatives", "-1,"), ("texts", '"",')):
        yield body(f"2-megabytes-of-{kind}", f"y = [{unit * ((2 << 20) // len(unit) - 300)}]\nreturn q", None)
    yield body("2-megabytes-of-newlines", "\n" * ((2 << 20) // 5 - 100) + "return q", None)
    yield body("text-of-2-megabytes", 'y = "' + "a" * (2 << 20) + '"\nreturn x', LIMITS)
    yield body("text-of-a-megabyte-in-a-loop", 'for _0 in range(100000):\n  y = "' + "a" * (1 << 20) + '"\nreturn x', LIMITS)
    yield body("text-doubling", 'y = "aaaaaaaa"\nfor _0 in range(60):\n  y = torch.add(y, y)\nreturn x', SHAPES)
    yield body("text-format-doubling", 'y = "aaaaaaaa"\nfor _0 in range(60):\n  y = torch.format("{}{}", y, y)\nops.prim.RaiseException(y, "E")\nreturn x', None)
    yield body("list-times-10-to-the-12", "y = torch.mul([0], 1000000000000)\nreturn x", SHAPES, "grows past")
    yield body("list-doubling", "y = [0]\nfor _0 in range(60):\n  y = torch.add(y, y)\nreturn x", LIMITS)
    yield body("list-of-lists-doubling", "y = [[0]]\nfor _0 in range(60):\n  y = torch.add(y, [y[0]])\n  y = torch.add(y, y)\n"
               "return x", LIMITS)  # fmt: skip
    yield body("tuples-doubling", "y = (0, 0)\n" + "".join("y = (y, y)\n" for _ in range(60)) + "z = torch.format(\"{}\", y)\nops.prim.RaiseException(z, \"E\")\n"
               "return x", None)  # fmt: skip
    yield body("list-appended-to-itself", "y = [[0]]\nfor _0 in range(900000):\n  _1 = torch.append(y[0], 1)\nreturn x", LIMITS)
    yield body("integer-overflow", f"y = torch.mul({2**62}, 4)\nz = torch.arange(y)\nreturn x", SHAPES)
    yield body("integer-too-long", "y = " + "9" * 400 + "\nreturn x", READABLE)
    yield body("shape-near-2-to-the-63", f"return torch.add(x, torch.sum(torch.zeros([{2**62}, 2])))", SHAPES)
    yield body("shape-of-a-terabyte", f"return torch.add(x, torch.sum(torch.ones([{2**40}])))", MEMORY)
    yield body("expanded-to-a-terabyte", f"y = torch.expand(torch.sum(x), [{2**40}])\nreturn torch.add(x, torch.sum(y))", MEMORY)
    yield body("cat-doubling", "y = x\nfor _0 in range(60):\n  y = torch.cat([y, y], 1)\nreturn torch.mul(x, torch.sum(y))", MEMORY)
    yield body("products-of-a-petaflop", "y = torch.expand(torch.sum(x), [60000, 60000])\n"
               "for _0 in range(9):\n  y = torch.matmul(y, y)\nreturn torch.add(x, torch.sum(y))", MEMORY)  # fmt: skip
    yield body("products-of-a-teraflop", "y = torch.expand(torch.sum(x), [4000, 4000])\n"
               "for _0 in range(9):\n  y = torch.matmul(y, y)\nreturn torch.add(x, torch.sum(y))", FLOPS)  # fmt: skip
    yield body("a-million-operations", "y = x\nfor _0 in range(300000):\n  y = torch.add(y, x)\nreturn y", MEMORY)
    yield body("padding-2-to-the-62", f"return torch.sum(torch.constant_pad_nd(x, [{2**62}, {2**62}]), [1], True)", SHAPES)
    yield body("unsqueeze-a-thousand", "y = x\nfor _0 in range(1000):\n  y = torch.unsqueeze(y, 0)\nreturn y", MEMORY, "dimensions")
    for op, call in (
        ("save", f'torch.save(x, "{canary}")'), ("from_file", f'torch.from_file("{canary}", True, 1)'),
        ("rand", "torch.rand([12])"), ("randn_like", "torch.randn_like(x)"), ("bernoulli", "torch.bernoulli(x)"),
        ("normal_", "torch.normal_(x)"), ("randperm", "torch.randperm(12)"), ("to-cuda", 'torch.to(x, "cuda:0")'),
        ("item", "torch.item(x)"), ("nonzero", "torch.nonzero(x)"), ("unique", "torch.unique(x)"), ("svd", "torch.svd(x)"),
        ("set_data", "torch.set_data(x, x)"), ("manual_seed", "torch.manual_seed(1)"), ("open", f'open("{canary}")'),
        ("import", '__import__("os")'), ("eval", 'eval("1")'), ("print", "print(x)"),
        ("custom-op", "ops.evil.run(x)"), ("custom-aten", "ops.aten.save(x)"), ("fork", "torch.fork(x)"),
        ("rpc", "torch.rpc_sync(x)"), ("backward", "torch.backward(x)"), ("dunder", "x.__class__.__mro__"),
        ("unchecked-cast", "unchecked_cast(Tensor, self)"), ("as_strided", "torch.as_strided(x, [999999], [1], 0)"),
        ("resize", "torch.resize_(x, [999999])"), ("data_ptr", "torch.data_ptr(x)"), ("empty_strided", "torch.empty_strided([12], [1])"),
    ):  # fmt: skip
        yield body(f"calls-{op}", f"y = {call}\nreturn torch.add(x, y)", None)
    yield body("branch-on-data", "if bool(torch.sum(x)):\n  y = x\nelse:\n  y = torch.neg(x)\nreturn y", OPS)
    yield body("loop-on-data", "while bool(torch.gt(torch.sum(x), 0)):\n  x0 = x\nreturn x", OPS)
    yield body("raises", 'ops.prim.RaiseException("no luck", "builtins.ValueError")\nreturn x', SHAPES, "no luck")
    yield body("returns-a-number", "return 3", None)
    yield body("returns-nothing", "pass", None)
    yield body("returns-the-module", "return self", None)
    yield body("returns-two", "return (x, x)", SHAPES)
    yield body("returns-whole-numbers", "return torch.argmax(x, 1, True)", None)
    yield body("drops-the-batch", "return torch.sum(x, [0])", SHAPES, "batch")
    yield body("folds-the-batch", "return torch.reshape(x, [4, -1])", SHAPES)
    yield body("reads-a-missing-attribute", "return self.nothing", None)
    yield body("reads-a-missing-name", "return y", None)
    yield body("index-out-of-range", "y = [1, 2]\nz = y[5]\nreturn x", None)
    yield body("divides-by-zero", "y = torch.floordiv(1, 0)\nreturn x", None)
    yield body("shift-by-a-billion", "y = torch.__lshift__(1, 1000000000)\nreturn x", None)
    yield body("gives-nan", "return torch.log(torch.neg(torch.abs(x)))", TRIAL, "not finite")
    yield body("gives-nan-behind-a-mask", "return torch.where(torch.gt(x, 0), torch.div(x, torch.sub(x, x)), x)", TRIAL)
    yield body("infinite-gradient", "return torch.sqrt(torch.sub(x, x))", TRIAL, "gradient")
    yield body("two-inputs", "return x", None, replace={"code/__torch__.py": code("return torch.add(x, y)").replace(
        "x: Tensor)", "x: Tensor,\n    y: Tensor)").encode()})  # fmt: skip
    yield "code-not-utf8", script(b"class K(Module):\n  \xff\xfe\n"), READABLE, "", SAMPLE
    yield "code-nul", script(code("return x").encode() + b"\0"), READABLE, "", SAMPLE
    yield "code-no-class", script(b"x = 1\n"), WHITELIST, "outside of classes", SAMPLE
    yield "code-python", script(f"import os\nos.system('touch {canary}')\n".encode()), WHITELIST, "outside of classes", SAMPLE
    yield "code-lambda", script(code("y = lambda a: a\nreturn x").encode()), READABLE, "", SAMPLE
    yield "code-unclosed", script(code('return torch.relu(x').encode()), READABLE, "", SAMPLE
    yield "code-tabs", script(code("return x").replace("    return", "\treturn").encode()), READABLE, "", SAMPLE
    yield "code-20-megabytes", script(code("return x").encode() + b"#" * (20 << 20)), LIMITS, "", SAMPLE


def programs():
    def meta(change):
        def edit(model):
            change(graph(model)["tensor_values"]["x"])

        return edit

    def weight(change):
        return lambda config: change(config["up.weight"]["tensor_meta"])

    yield "pt2-future-schema", program(lambda m: m["schema_version"].update(major=9)), WHITELIST, "version 9"
    yield "pt2-ancient-schema", program(lambda m: m["schema_version"].update(major=2)), WHITELIST, "version 2"
    yield "pt2-schema-2-to-the-70", program(lambda m: m["schema_version"].update(major=2**70)), READABLE, ""
    yield "pt2-cut-json", program(raw=lambda text: text[: len(text) // 2]), READABLE, ""
    yield "pt2-not-json", program(raw=lambda _: b"\x80\x02K\x01."), READABLE, ""
    yield "pt2-not-utf8", program(raw=lambda text: text.replace(b"add", b"a\xff\xfe", 1)), READABLE, ""
    yield "pt2-lone-surrogate", program(raw=lambda text: text.replace(b'"gelu"', b'"\\ud800"')), READABLE, ""
    yield "pt2-nested-200000-deep", program(raw=lambda _: b"[" * 200_000 + b"]" * 200_000), READABLE, ""
    yield "pt2-nested-field-200000-deep", program(
        raw=lambda text: text.replace(b'"as_ints": [', b'"as_ints": ' + b"[" * 200_000 + b"]" * 199_999, 1)
    ), READABLE, ""  # fmt: skip
    yield "pt2-huge-number", program(raw=lambda text: text.replace(b'"as_int": 36', b'"as_int": ' + b"9" * 500)), READABLE, ""
    yield "pt2-duplicate-key", program(raw=lambda text: b'{"graph_module": null,' + text[1:]), READABLE, ""
    yield "pt2-json-of-40-megabytes", program(raw=lambda text: text + b" " * (40 << 20)), LIMITS, "bytes of JSON"
    yield "pt2-no-model", program(replace={"models/model.json": None, "models/x": b""}), WHITELIST, "exactly one"
    yield "pt2-two-models", program(replace={"models/other.json": b"{}"}), WHITELIST, "exactly one"
    yield "pt2-missing-weight", program(replace={"data/weights/weight_2": None}), READABLE, "missing"
    yield "pt2-weight-too-short", program(replace={"data/weights/weight_2": FLOATS}), READABLE, "past the end"
    yield "pt2-weight-not-described", program(weights=lambda c: c.pop("up.weight")), READABLE, "up.weight"
    yield "pt2-weight-path-traversal", program(
        weights=lambda c: c["up.weight"].update(path_name="../../../etc/passwd")
    ), READABLE, "missing"  # fmt: skip
    yield "pt2-weight-pickled", program(weights=lambda c: c["up.weight"].update(use_pickle=True)), None, ""
    yield "pt2-weight-size-2-to-the-62", program(weights=weight(lambda m: m.update(sizes=[{"as_int": 2**62}] * 2))), READABLE, ""
    yield "pt2-weight-negative-size", program(weights=weight(lambda m: m["sizes"][0].update(as_int=-36))), READABLE, ""
    yield "pt2-weight-negative-stride", program(weights=weight(lambda m: m["strides"][1].update(as_int=-1))), READABLE, ""
    yield "pt2-weight-symbolic-size", program(
        weights=weight(lambda m: m["sizes"].__setitem__(0, {"as_expr": {"expr_str": "s0", "hint": None}}))
    ), READABLE, ""  # fmt: skip
    yield "pt2-weight-of-another-shape", program(
        weights=weight(lambda m: m.update(sizes=[{"as_int": 12}, {"as_int": 36}], strides=[{"as_int": 36}, {"as_int": 1}]))
    ), None, ""  # fmt: skip
    yield "pt2-weight-dtype-99", program(weights=weight(lambda m: m.update(dtype=99))), None, ""
    yield "pt2-weight-nan", program(replace={"data/weights/weight_0": struct.pack("<12f", *([float("nan")] * 12))}), FINITE, "NaN"
    yield "pt2-cycle", program(lambda m: node(m, "layer_norm.default")["inputs"][0]["arg"]["as_tensor"].update(name="gelu")), READABLE, ""
    yield "pt2-reads-itself", program(lambda m: node(m, "gelu.default")["inputs"][0]["arg"]["as_tensor"].update(name="gelu")), READABLE, ""
    yield "pt2-forward-reference", program(lambda m: graph(m)["nodes"].reverse()), READABLE, ""
    yield "pt2-output-never-made", program(
        lambda m: m["graph_module"]["signature"]["output_specs"][0]["user_output"]["arg"]["as_tensor"].update(name="nowhere")
    ), READABLE, ""  # fmt: skip
    yield "pt2-value-made-twice", program(lambda m: node(m, "gelu.default")["outputs"][0]["as_tensor"].update(name="linear")), READABLE, ""
    yield "pt2-input-overwritten", program(lambda m: node(m, "gelu.default")["outputs"][0]["as_tensor"].update(name="x")), READABLE, ""
    for op in (
        "torch.ops.aten.save.default", "torch.ops.evil.run.default", "torch.ops.aten.rand.default", "os.system",
        "torch.ops.aten.from_file.default", "torch.ops.higher_order.cond", "_operator.getitem", "builtins.eval",
        "torch.ops.aten.bernoulli.default", "torch.ops.prims.rng_uniform.default",
        "torch.ops.aten.nonzero.default", "torch.ops.aten._local_scalar_dense.default", "",
        "torch.ops.inductor._reinterpret_tensor.default", "torch.ops.c10d.all_reduce.default",
        "torch.ops.higher_order.triton_kernel_wrapper_mutation",
    ):  # fmt: skip
        yield f"pt2-op-{op.removeprefix('torch.ops.') or 'empty'}", program(retarget("gelu.default", op)), None, ""
    yield "pt2-argument-twice", program(lambda m: node(m, "gelu.default")["inputs"].append(node(m, "gelu.default")["inputs"][0])), None, ""
    yield "pt2-argument-missing", program(lambda m: node(m, "linear.default")["inputs"].clear()), None, ""
    yield "pt2-argument-unknown", program(
        lambda m: node(m, "gelu.default")["inputs"].append({"name": "evil", "arg": {"as_int": 1}, "kind": 2})
    ), None, ""  # fmt: skip
    yield "pt2-argument-kind", program(
        lambda m: node(m, "gelu.default")["inputs"][0].update(arg={"as_graph": {"name": "g", "graph": {}}})
    ), None, ""  # fmt: skip
    yield "pt2-custom-object-input", program(
        lambda m: m["graph_module"]["signature"]["input_specs"].append(
            {"custom_obj": {"arg": {"name": "o", "class_fqn": "evil.Class"}, "custom_obj_name": "o"}}
        )
    ), WHITELIST, "custom object"  # fmt: skip
    yield "pt2-token-input", program(
        lambda m: m["graph_module"]["signature"]["input_specs"].append({"token": {"arg": {"name": "t"}}})
    ), WHITELIST, ""  # fmt: skip
    yield "pt2-writes-its-parameters", program(
        lambda m: m["graph_module"]["signature"]["output_specs"].append(
            {"parameter_mutation": {"arg": {"name": "add"}, "parameter_name": "up.weight"}}
        )
    ), WHITELIST, "changes its parameters"  # fmt: skip
    yield "pt2-writes-a-missing-buffer", program(
        lambda m: m["graph_module"]["signature"]["output_specs"].insert(
            0, {"buffer_mutation": {"arg": {"name": "add"}, "buffer_name": "nowhere"}}
        )
    ), None, ""  # fmt: skip
    yield "pt2-two-inputs", program(
        lambda m: (
            m["graph_module"]["signature"]["input_specs"].append({"user_input": {"arg": {"as_tensor": {"name": "y"}}}}),
            graph(m)["inputs"].append({"as_tensor": {"name": "y"}}),
            graph(m)["tensor_values"].update(y=graph(m)["tensor_values"]["x"]),
            None,
        )[-1]
    ), SHAPES, "2 inputs"  # fmt: skip
    yield "pt2-input-not-described", program(lambda m: graph(m)["tensor_values"].pop("x") and None), READABLE, "no description"
    yield "pt2-input-scalar", program(meta(lambda x: x.update(sizes=[], strides=[]))), SHAPES, "scalar"
    yield "pt2-input-2-to-the-62", program(meta(lambda x: x["sizes"][1].update(as_int=2**62))), None, ""
    yield "pt2-input-of-a-terabyte", program(meta(lambda x: x["sizes"][1].update(as_int=2**36))), MEMORY, ""
    yield "pt2-input-negative", program(meta(lambda x: x["sizes"][1].update(as_int=-5))), READABLE, "negative"
    yield "pt2-input-of-another-shape", program(meta(lambda x: x["sizes"][2].update(as_int=13))), SHAPES, ""
    yield "pt2-input-of-integers", program(meta(lambda x: x.update(dtype=5))), None, ""
    empty = b'{"target":"torch.ops.aten.relu.default","inputs":[],"outputs":[],"metadata":{}},'
    yield "pt2-400000-empty-nodes", program(
        raw=lambda text: text.replace(b'"nodes": [', b'"nodes": [' + empty * 400_000, 1)
    ), None, ""  # fmt: skip
    yield "pt2-a-million-empty-nodes", program(
        raw=lambda text: text.replace(b'"nodes": [', b'"nodes": [' + empty * 1_000_000, 1)
    ), LIMITS, "bytes of JSON"  # fmt: skip
    yield "pt2-20000-additions", program(repeated(20_000)), None, ""
    most = 16 << 20

    def stuffed(unit, before):
        return lambda text: text.replace(before, before + unit * ((most - len(text)) // len(unit) - 10), 1)

    for kind, unit, before in (
        ("integers", b"1,", b'"as_ints": ['), ("nodes", empty, b'"nodes": ['),
        ("values", b'"":null,', b'"tensor_values": {'),
        ("specs", b'{"token":{"arg":{"name":""}}},', b'"input_specs": ['),
    ):  # fmt: skip
        yield f"pt2-16-megabytes-of-{kind}", program(raw=stuffed(unit, before)), None, ""
    yield "pt2-custom-class-in-stack", program(
        lambda m: node(m, "gelu.default")["metadata"].update(nn_module_stack="L__self__,,evil.Module")
    ), MODULES, "evil.Module", None, '[validator]\nallowed_modules = ["golden_modules.", "torch.nn."]\n'  # fmt: skip
    yield "pt2-unsigned", program(), SIGNATURE, "not signed", None, (
        "[validator]\nrequire_signature = true\n"
        'trusted_keys = ["ed25519:9902907d6214d6564b110e9a79474c4cf328db75bcde36a0728cb2a168ea088b"]\n'
    )


def truncations():
    """A good archive of each format cut at every sixteenth of its length."""
    for ending, good in (("pt", weighted(tensor())), ("pt2", program())):
        for part in range(1, 16):
            yield f"cut-{ending}-{part:02}-of-16", good[: len(good) * part // 16], READABLE, ""


def cases(canary):
    yield from zips()
    yield from pickles(canary)
    yield from tensors()
    yield from scripts(canary)
    yield from programs()
    yield from truncations()


def main():
    folder, canary = Path(sys.argv[1]), sys.argv[2]
    manifest = []
    for trick, content, rule, reason, *more in cases(canary):
        sizes, config = (*more, None, None)[:2]
        # The names hold what opcodes and operations are called; a file's name holds less.
        name = "".join(c if c.isalnum() or c in "-." else "_" for c in trick)
        (folder / name).write_bytes(content)
        manifest.append({"file": name, "rule": rule, "reason": reason, "input_shape": sizes, "config": config})
    assert len({entry["file"] for entry in manifest}) == len(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
