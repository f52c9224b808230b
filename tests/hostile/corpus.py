"""One table of hostile files: their names and bytes, what reads them, and what has to be said of them."""

from __future__ import annotations

import pickle
import zipfile

import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from tests.hostile.case import Case
from tests.hostile.corpus_of_data import DATA
from tests.hostile.forged import (
    CODES,
    DEEP,
    ESCAPE,
    SAME,
    Runs,
    changed,
    entry,
    filled,
    folder_of,
    functions,
    graph,
    itself,
    many_ways,
    naming,
    nest,
    plan,
    pruned,
    report,
    saved,
    scores,
    tensors,
    toml,
    with_pickle,
    zipped,
)
from tests.hostile.seeds import weights

AS_CHECKPOINT = (
    ("inspect", "FILE", "--spec", "net.toml"),
    ("prune", "FILE", "--spec", "net.toml", "--keep", "0.5", "--method", "magnitude"),
    ("score", "FILE", "--spec", "net.toml", "--method", "magnitude", "--out", "new.safetensors"),
    ("export", "FILE", "--spec", "net.toml", "--safetensors", "new.safetensors"),
    ("compress-report", "net.pt", "FILE", "--spec", "net.toml", "--out", "new.html"),
)
"""Commands that read a checkpoint."""
INSIDE = (("inspect", "FILE"), ("prune", "FILE", "--keep", "0.5", "--method", "magnitude", "--dry-run"))
"""Commands that believe what a checkpoint says of itself."""
AS_SPEC = (
    ("inspect", "net.pt", "--spec", "FILE"),
    ("train", "--spec", "FILE", "--epochs", "1", "--lr", "0.1", "--out", "new"),
)
AS_ONNX = (("compress-report", "net.pt", "FILE", "--spec", "net.toml", "--out", "new.html"),)
AS_REPORT = (("compress-report", "FILE", "--out", "new.html"), ("compress-report", "FILE", "--json"))
AS_SWEEP = (
    ("compress-report", "net.pt", "net.pt", "--spec", "net.toml", "--sweep", "FILE", "--out", "new.md"),
)
_PRUNE = ("prune", "net.pt", "--spec", "net.toml", "--out", "new")
AS_PLAN = ((*_PRUNE, "--apply", "FILE"),)
AS_SCORES = ((*_PRUNE, "--keep", "0.5", "--scores", "FILE"),)
_SIX = torch.arange(6, dtype=torch.float64)
_ABOUT = {"version": 1, "method": "magnitude", "groups": ["0"]}

CHECKPOINTS = (
    Case("empty", lambda: b"", AS_CHECKPOINT, "is empty"),
    Case("one byte", lambda: b"\x80", AS_CHECKPOINT, "not a PyTorch checkpoint"),
    Case("not at all", lambda: bytes(range(1, 32)) * 9, AS_CHECKPOINT, "is in no known format"),
    Case("cut zip", lambda: saved(weights())[:-300], AS_CHECKPOINT, "damaged zip file"),
    Case("cut header", lambda: tensors(b'{"a"', length=900), AS_CHECKPOINT, "claims 900 bytes"),
    Case("endless header", lambda: tensors(b"{}", length=2**31), AS_CHECKPOINT, "claims 2,147,483,648 bytes"),
    Case("deep header", lambda: tensors(DEEP), AS_CHECKPOINT, "its header is not JSON"),
    Case("negative shape", lambda: tensors({"a": entry(0, 4, [-1])}, b"1234"), AS_CHECKPOINT, r"is \[-1\]"),
    Case("huge shape", lambda: tensors({"a": entry(0, 4, [2**40])}, b"1234"), AS_CHECKPOINT, "cannot fill"),
    Case(
        "product of huge sizes",
        lambda: tensors({"a": entry(0, 4, [10**18] * 100_000)}, b"1234"),
        AS_CHECKPOINT,
        "the shape of `a` is",
    ),
    Case(
        "overlapping offsets",
        lambda: tensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        AS_CHECKPOINT,
        "begins at byte 4",
    ),
    Case(
        "names twice",
        lambda: tensors(b'{"a":1,"a":2}'),
        AS_CHECKPOINT,
        "`a` comes twice",
    ),
    Case(
        "unknown dtype", lambda: tensors({"a": entry(0, 4, [1], "X9")}, b"1234"), AS_CHECKPOINT, "dtype `X9`"
    ),
    Case("NaN", lambda: filled(float("nan")), AS_CHECKPOINT, "24 values that are not finite"),
    Case("infinity", lambda: filled(float("inf")), AS_CHECKPOINT, "24 values that are not finite"),
    Case("integers", lambda: changed("0.weight", torch.Tensor.int), AS_CHECKPOINT, "is int32"),
    Case("complex numbers", lambda: changed("0.weight", lambda w: w + 1j), AS_CHECKPOINT, "is complex"),
    Case("another shape", lambda: changed("0.weight", lambda w: w[:3]), AS_CHECKPOINT, "1 shapes differ"),
    Case(
        "repeated values",
        lambda: changed("0.weight", lambda w: w[:1, :1].expand(2**20, 2**20)),
        AS_CHECKPOINT,
        "repeat the same values",
    ),
    Case("a pickled module", lambda: saved(torch.nn.Linear(4, 2)), AS_CHECKPOINT, "whole pickled model"),
    Case("code", lambda: saved({"a": Runs()}), AS_CHECKPOINT, "would run code of `.*print`"),
    Case("code in a bare pickle", lambda: pickle.dumps(Runs()), AS_CHECKPOINT, "could run code"),
    Case(
        "code, the old way",
        lambda: saved({"a": Runs()}, _use_new_zipfile_serialization=False),
        AS_CHECKPOINT,
        "would run code of `.*print`",
    ),
    Case(
        "a zip bomb",
        lambda: zipped({"a/data.pkl": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED),
        AS_CHECKPOINT,
        "a zip bomb",
    ),
    Case("a dict in itself", itself, AS_CHECKPOINT, "holds no parameters"),
    Case("ways without end", many_ways, AS_CHECKPOINT, "holds no parameters"),
    Case(
        "text of lists of text",
        lambda: with_pickle(
            b"\x80\x02"
            + b"c__builtin__\nstr\nc__builtin__\nlist\n" * 30
            + b"X\x04\0\0\0abcd"
            + b"\x85R" * 60
            + b"."
        ),
        AS_CHECKPOINT,
        "holds a Opaque, not a dict of tensors",
    ),
    Case("codes of codes", lambda: with_pickle(CODES), AS_CHECKPOINT, "encodes bytes as other bytes"),
    Case(
        "codes of codes, under a name that Python does not read",
        lambda: with_pickle(CODES).replace(b"a/data.pkl", b"a/DATA.PKL", 1),
        AS_CHECKPOINT,
        "is damaged .*differ",
    ),
    Case(
        "codes of codes, behind a name that is no text",
        lambda: with_pickle(CODES).replace(b"a/data.pkl", b"a/data\xff\xff\xff\xff", 1),
        AS_CHECKPOINT,
        "is damaged",
    ),
    Case(
        "codes of codes, beside harmless ones",
        lambda: zipped({"a/DATA.PKL": CODES, "a/data.pkl": b"\x80\x02}.", "a/version": b"3"}),
        AS_CHECKPOINT,
        "encodes bytes as other bytes",
    ),
    Case(
        "escapes in names",
        lambda: saved({ESCAPE: torch.ones(2), "a\nb\nc": torch.ones(2)}),
        AS_CHECKPOINT,
        r"unexpected: `\\x1b\[2J\\x1b\[31mowned`, `a\\nb\\nc`",
    ),
    Case(
        "paths as names",
        lambda: saved({"../../../etc/passwd": torch.ones(2)}),
        AS_CHECKPOINT,
        "unexpected: `../../../etc/passwd`",
    ),
    Case(
        "a shard elsewhere",
        lambda: b'{"weight_map": {"a": "../net.safetensors"}}',
        AS_CHECKPOINT,
        "not a plain file name",
    ),
    Case("a deep index", lambda: b'{"weight_map": ' + DEEP, AS_CHECKPOINT, "no index of shards"),
    Case(
        "lists without end",
        lambda: tensors(b'{"a":[' + b"[]," * 4_000_001 + b"[]]}"),
        AS_CHECKPOINT[:1],
        "more than 4,000,000 lists and objects",
    ),
    Case(
        "nothing, of a size beyond numbers",
        lambda: tensors({"a": entry(0, 0, [0, 2**62, 2**62])}),
        (*AS_CHECKPOINT, (*AS_CHECKPOINT[1], "--streaming", "--no-onnx")),
        "cannot fill bytes 0 to 0",
    ),
    Case(
        "a lone number", lambda: changed("0.bias", lambda bias: bias[0]), AS_CHECKPOINT, r"`0.bias` is \[\]"
    ),
    Case(
        "zeros without end",
        lambda: with_pickle(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        AS_CHECKPOINT[:1],
        "would take more memory than there is, or than",
    ),
    Case(
        "a list of itself, many times over",
        lambda: with_pickle(b"\x80\x02ctorch\nTensor\n" + SAME + b"\x85R."),
        AS_CHECKPOINT[:1],
        "would take more memory than there is, or than",
    ),
    Case(
        "a dict whose methods are numbers",
        lambda: with_pickle(b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\1sb."),
        AS_CHECKPOINT,
        "holds no parameters",
    ),
    Case(
        "a hostile index of a distributed checkpoint",
        lambda: {".metadata": pickle.dumps(Runs())},
        AS_CHECKPOINT,
        "would run code of `builtins.print`",
    ),
    Case(
        "a memo without end",
        lambda: {".metadata": b"\x80\x02}r\xff\xff\xff\x7f."},
        AS_CHECKPOINT,
        "cannot be read safely: it is damaged",
    ),
)

PRUNED = (
    Case("a newer format", lambda: pruned(format=99), INSIDE, "reads up to 1. Update prunecli"),
    Case("deep metadata", lambda: save(weights(), {"prunecli": DEEP.decode()}), INSIDE, "damaged|not JSON"),
    Case("another program's metadata", lambda: save(weights(), {"prunecli": "yes"}), INSIDE, "damaged"),
    Case(
        "code beside it", lambda: naming("net.py:net"), INSIDE, "code outside torchvision, timm, transformers"
    ),
    Case("code elsewhere", lambda: naming("../../x.py:net"), INSIDE, "code outside torchvision"),
    Case("code of the system", lambda: naming("os:system", command="id"), INSIDE, "code outside torchvision"),
    Case("a folder elsewhere", lambda: naming("hf:/etc"), INSIDE, "a folder of this machine|damaged"),
    Case("a function that is no model", lambda: naming("torchvision.io:read_file"), INSIDE, "is no model"),
    Case(
        "a model that fetches",
        lambda: naming("torchvision:resnet18", (3, 32, 32), weights="DEFAULT"),
        INSIDE,
        "fetches another file",
    ),
    Case(
        "layers without end",
        lambda: naming(
            "transformers:BertModel", num_hidden_layers=10**8, hidden_size=4, num_attention_heads=1
        ),
        INSIDE,
        "`num_hidden_layers` = 100000000, more than 1,048,576",
    ),
    Case(
        "more layers than the file has",
        lambda: naming(
            "transformers:BertModel", num_hidden_layers=10**6, hidden_size=4, num_attention_heads=1
        ),
        INSIDE,
        "builds more than 5,080 layers and parameters",
    ),
    Case(
        "labels without end",
        lambda: naming("transformers:BertForSequenceClassification", num_labels=10**12),
        INSIDE,
        "`num_labels` = 1000000000000, more than",
    ),
    Case(
        "an input without end",
        lambda: naming("torchvision:resnet18", (3, 10**6, 10**6)),
        INSIDE,
        "has more than 268,435,456 values",
    ),
    Case(
        "attributes of Python",
        lambda: pruned(attributes={"0": {"__class__": 3}}),
        (("inspect", "FILE", "--spec", "net.toml"),),
        "expected a size",
    ),
    Case(
        "a method as a size",
        lambda: pruned(attributes={"0": {"forward": 3}}),
        (("inspect", "FILE", "--spec", "net.toml"),),
        "has no size `forward`",
    ),
    Case(
        "a tensor in the place of a method",
        lambda: pruned(aliases={"0.forward": "0.bias"}, non_persistent=["0.forward"]),
        (("inspect", "FILE", "--spec", "net.toml"),),
        "`0.forward` is no name for a tensor",
    ),
    Case(
        "widths that do not fit",
        lambda: pruned(attributes={"0": {"out_features": 5}, "2": {"in_features": 5}}),
        (("inspect", "FILE", "--spec", "net.toml"),),
        "",
        code=0,
    ),
    Case(
        "masks that do not fit",
        lambda: pruned(masks={"0.weight": {"kept": 10, "size": 24, "kept_zeros": "eJw="}}),
        (
            (
                "prune",
                "FILE",
                "--spec",
                "net.toml",
                "--granularity",
                "weight",
                "--keep",
                "0.8",
                "--method",
                "magnitude",
            ),
        ),
        "does not fit",
    ),
)

TEXTS = (
    Case("no TOML", lambda: b"\0\1\2", AS_SPEC, "is not TOML", suffix=".toml"),
    Case("deep TOML", lambda: b"a = " + b"[" * 100_000, AS_SPEC, "is not TOML|nested", suffix=".toml"),
    Case("a long number", lambda: b"a = " + b"9" * 5000, AS_SPEC, "is not TOML: Exceeds", suffix=".toml"),
    Case("a key with breaks", lambda: toml('"a\\nb\\nc" = 3'), AS_SPEC, "unknown key", suffix=".toml"),
    Case("a negative input", lambda: toml("").replace(b"[4]", b"[-4]"), AS_SPEC, "positive", suffix=".toml"),
    Case(
        "a huge input",
        lambda: toml("").replace(b"[4]", b"[99999, 99999]"),
        AS_SPEC,
        "more than 268,435,456 values",
        suffix=".toml",
    ),
    Case(
        "deep arguments",
        lambda: b'[model]\nfactory = "net.py:net"\nargs = {a = ' + b"[" * 80 + b"]" * 80 + b"}\n",
        AS_SPEC,
        "nested deeper than 64 levels",
        suffix=".toml",
    ),
    *(
        Case(
            f"a path that cannot be: {text[:12]!r}",
            lambda text=text: toml("").replace(b"net.py:net", text.encode()),  # type: ignore[misc]
            AS_SPEC,
            "in the spec is no path to read",
            suffix=".toml",
        )
        for text in ("a\\u0000.py:net", "hf:a\\u0000b", f"hf:{'x' * 5000}", "hf:~nobody-of-that-name/a")
    ),
    Case("a deep plan", lambda: DEEP, AS_PLAN, "is no JSON"),
    Case("a unit twice", lambda: plan(groups={"0": {"width": 6, "keep": [1, 1]}}), AS_PLAN, "each once"),
    Case("a unit too far", lambda: plan(groups={"0": {"width": 6, "keep": [6]}}), AS_PLAN, "expected 0 to 5"),
    Case("a huge group", lambda: plan(groups={"0": {"width": 10**15, "keep": [1]}}), AS_PLAN, "not 6"),
    Case("a huge number", lambda: plan(seed=10**300), AS_PLAN, "a number of 64 bits"),
    Case("another network", lambda: plan(groups={"x": {"width": 6, "keep": [1]}}), AS_PLAN, "no such group"),
    Case("half a character", lambda: plan(method="\ud800"), AS_PLAN, "surrogates not allowed"),
    Case("deep scores", lambda: tensors(DEEP), AS_SCORES, "holds no scores"),
    Case("scores of nobody", lambda: save({"0": _SIX}), AS_SCORES, "holds no scores"),
    Case("scores that are NaN", lambda: scores(_ABOUT, _SIX * float("nan")), AS_SCORES, "one finite float64"),
    Case("scores of integers", lambda: scores(_ABOUT, _SIX.int()), AS_SCORES, "one finite float64"),
    Case("groups in a row", lambda: scores(_ABOUT | {"groups": [[1]]}, _SIX), AS_SCORES, "damaged"),
    Case("a newer report", lambda: report(version=10**9), AS_REPORT, "Update prunecli", suffix=".json"),
    Case("a deep report", lambda: DEEP, AS_REPORT, "is not JSON", suffix=".json"),
    Case("no text", lambda: b"\xff\xfe{", AS_REPORT, "not text", suffix=".json"),
    Case("a deep sweep", lambda: DEEP, AS_SWEEP, "is not JSON", suffix=".json"),
)

FOLDERS = (
    Case("layers", lambda: folder_of(num_hidden_layers=10**8), (("inspect", "FILE"),), "more than 1,048,576"),
    Case(
        "many layers", lambda: folder_of(num_hidden_layers=10**5), (("inspect", "FILE"),), "builds more than"
    ),
    Case(
        "labels", lambda: folder_of(num_labels=10**12), (("inspect", "FILE"),), "`num_labels` = 1000000000000"
    ),
    Case(
        "words",
        lambda: folder_of(vocab_size=10**9),
        (("inspect", "FILE"),),
        "builds more than .* values|failed",
    ),
    Case(
        "depth",
        lambda: folder_of() | {"config.json": DEEP},
        (("inspect", "FILE", "--spec", "hf:FILE"),),
        "cannot be read",
    ),
    Case("quantised", lambda: folder_of(quantization_config={}), (("inspect", "FILE"),), "quantised"),
    Case(
        "code",
        lambda: folder_of(architectures=["os.system"]),
        (("inspect", "FILE"),),
        "does not name one class",
    ),
)


ONNX = (
    Case("no graph", lambda: b"\x08\x07\x12\x01a", AS_ONNX, "no valid ONNX file", suffix=".onnx"),
    Case("cut", lambda: nest(1)[:-20], AS_ONNX, "no valid ONNX file", suffix=".onnx"),
    Case(
        "nothing put out",
        lambda: graph(
            [helper.make_node("Mine", ["x"], [], domain="x"), helper.make_node("Relu", ["x"], ["y"])]
        ),
        AS_ONNX,
        "no valid ONNX file",
        suffix=".onnx",
    ),
    Case(
        "a huge input",
        lambda: graph([helper.make_node("Relu", ["x"], ["y"])], (1, 10**12)),
        AS_ONNX,
        r"its input `x` is \[1, 1000000000000\]",
        suffix=".onnx",
    ),
    Case(
        "functions without end",
        lambda: functions(40, lambda number: [number + 1] * 2),
        AS_ONNX,
        "its functions unfold into more than 100,000 operators",
        suffix=".onnx",
    ),
    Case(
        "functions that call themselves",
        lambda: functions(2, lambda number: [1 - number]),
        AS_ONNX,
        "no valid ONNX file: .*(themselves|Cycle)",
        suffix=".onnx",
    ),
    Case(
        "a huge constant",
        lambda: graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            constants=(TensorProto(name="w", data_type=1, dims=[10**12], raw_data=b"1234"),),
        ),
        AS_ONNX,
        "no valid ONNX file|onnxruntime cannot run the ONNX file",
        suffix=".onnx",
    ),
)

CASES = {
    f"{kind}: {case.name}": case
    for kind, cases in {
        "checkpoint": CHECKPOINTS,
        "pruned file": PRUNED,
        "text": TEXTS,
        "folder": FOLDERS,
        "ONNX": ONNX,
        "data": DATA,
    }.items()
    for case in cases
}
