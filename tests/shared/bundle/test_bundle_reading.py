"""A bundle is validated wholly before anything is loaded: one typed error per way to be wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tiny_bundle import TinyBundle, make_tiny_bundle

from shared import errors
from shared.bundle.digest import chunk_digests, digest_of_bytes
from shared.bundle.layout import ImageLayout
from shared.bundle.manifest import CONFIG_MEDIA_TYPE, SENSITIVE_TITLE, TRUNK_TITLE, Descriptor, block_title
from shared.bundle.read import read_bundle

FIRST = "model.layers.0.self_attn.q_proj.weight"
Tensors = dict[str, np.ndarray]


@pytest.fixture
def bundle(tmp_path: Path) -> TinyBundle:
    return make_tiny_bundle(tmp_path / "store")


class Forger:
    """Changes a bundle and makes all digests right again, as a faulty or hostile publisher would."""

    def __init__(self, bundle: TinyBundle) -> None:
        self.layout = bundle.layout
        self.manifest: dict[str, Any] = json.loads(self.layout.blob_path(bundle.digest).read_bytes())
        self.config: dict[str, Any] = json.loads(self.layout.blob_path(self.manifest["config"]["digest"]).read_bytes())

    def layer(self, title: str) -> dict[str, Any]:
        return next(layer for layer in self.manifest["layers"] if title in layer["annotations"].values())

    def replace_bytes(self, title: str, change: Callable[[bytes], bytes]) -> None:
        layer = self.layer(title)
        data = change(self.layout.blob_path(layer["digest"]).read_bytes())
        stored = self.layout.add_bytes(data, layer["mediaType"])
        self.config["chunks"].pop(layer["digest"], None)
        layer.update(digest=stored.digest, size=stored.size)

    def replace_tensors(self, title: str, change: Callable[[Tensors], Tensors]) -> None:
        self.replace_bytes(title, lambda data: safetensors.numpy.save(change(safetensors.numpy.load(data))))

    def publish(self) -> str:
        config = self.layout.add_bytes(json.dumps(self.config).encode(), CONFIG_MEDIA_TYPE)
        self.manifest["config"] = json.loads(config.to_bytes())
        return self.publish_manifest(json.dumps(self.manifest).encode())

    def publish_manifest(self, data: bytes) -> str:
        return self.layout.add_bytes(data, "application/json").digest


def test_an_intact_bundle_reads_back_what_was_written(bundle):
    read = read_bundle(bundle.layout, bundle.digest)
    mask, values = read.sensitive(FIRST)
    assert values.tolist() == bundle.weights[FIRST].flatten()[mask.indices.tolist()].tolist()
    assert read.config.sensitive_count == 2 * 7 * 8
    assert read.path(TRUNK_TITLE).is_file()


def test_a_tensor_without_sensitive_values_has_an_empty_mask(bundle):
    forger = Forger(bundle)
    forger.config["tensors"][0]["sensitive_count"] = 0
    drop = [f"{FIRST}.{part}" for part in ("indices", "rank", "values")]
    forger.replace_tensors(SENSITIVE_TITLE, lambda tensors: {n: t for n, t in tensors.items() if n not in drop})
    mask, values = read_bundle(bundle.layout, forger.publish()).sensitive(FIRST)
    assert (len(mask), values.size) == (0, 0)


def edit(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: change(tensors[name])}


def swap_first_two(values: np.ndarray) -> np.ndarray:
    return values[[1, 0, *range(2, values.size)]]


def repeat_first(values: np.ndarray) -> np.ndarray:
    return values[[0, 0, *range(2, values.size)]]


def with_last(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        changed = values.copy()
        changed.flat[-1] = value
        return changed

    return change


TENSOR_FAULTS = [
    ("indices_unsorted", SENSITIVE_TITLE, edit(f"{FIRST}.indices", swap_first_two), errors.IndicesUnsorted),
    ("indices_duplicated", SENSITIVE_TITLE, edit(f"{FIRST}.indices", repeat_first), errors.IndicesDuplicated),
    ("index_too_large", SENSITIVE_TITLE, edit(f"{FIRST}.indices", with_last(32 * 32)), errors.IndicesOutOfRange),
    ("index_negative", SENSITIVE_TITLE, edit(f"{FIRST}.indices", with_last(-1)), errors.IndicesOutOfRange),
    ("rank_repeated", SENSITIVE_TITLE, edit(f"{FIRST}.rank", repeat_first), errors.RanksInvalid),
    ("value_infinite", SENSITIVE_TITLE, edit(f"{FIRST}.values", with_last(np.inf)), errors.ValuesNotFinite),
    ("codebook_nan", block_title(0), edit(f"{FIRST}.lut", with_last(np.nan)), errors.ValuesNotFinite),
    ("embedding_nan", TRUNK_TITLE, edit("model.norm.weight", with_last(np.nan)), errors.ValuesNotFinite),
    ("one_value_too_few", SENSITIVE_TITLE, edit(f"{FIRST}.values", lambda v: v[1:]), errors.TensorMismatch),
    ("codes_too_short", block_title(0), edit(f"{FIRST}.codes", lambda v: v[:, 1:]), errors.TensorMismatch),
    (
        "indices_of_64_bits",
        SENSITIVE_TITLE,
        edit(f"{FIRST}.indices", lambda v: v.astype("i8")),
        errors.InvalidTensorHeader,
    ),
    ("lut_as_bytes", block_title(0), edit(f"{FIRST}.lut", lambda v: v.astype("u1")), errors.TensorMismatch),
    ("extra_tensor", TRUNK_TITLE, lambda t: t | {"more": np.zeros(1, np.uint8)}, errors.TensorMismatch),
    ("missing_tensor", TRUNK_TITLE, lambda t: {"model.norm.weight": t["model.norm.weight"]}, errors.TensorMismatch),
]


@pytest.mark.parametrize(
    ("title", "change", "error"), [row[1:] for row in TENSOR_FAULTS], ids=[r[0] for r in TENSOR_FAULTS]
)
def test_each_fault_inside_tensors_has_its_error(bundle, title, change, error):
    forger = Forger(bundle)
    forger.replace_tensors(title, change)
    with pytest.raises(error) as caught:
        read_bundle(bundle.layout, forger.publish())
    assert type(caught.value) is error


def with_header(header: bytes) -> Callable[[bytes], bytes]:
    return lambda _: struct.pack("<Q", len(header)) + header + b"\0" * 8


def slot(dtype: str = "U8", shape: object = (4,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header_of(*slots: object) -> Callable[[bytes], bytes]:
    return with_header(json.dumps({f"t{index}": entry for index, entry in enumerate(slots)}).encode())


HEADER_FAULTS = [
    ("empty_file", lambda _: b"", errors.BlobTruncated),
    ("only_a_length", lambda _: struct.pack("<Q", 100), errors.BlobTruncated),
    ("header_of_2_MiB", lambda _: struct.pack("<Q", 2**21), errors.LimitExceeded),
    ("header_length_of_2_63", lambda _: struct.pack("<Q", 2**63), errors.LimitExceeded),
    ("header_no_json", with_header(b"{"), errors.InvalidTensorHeader),
    ("header_a_list", with_header(b"[]"), errors.InvalidTensorHeader),
    ("deeply_nested", with_header(b"[" * 100_000), errors.InvalidTensorHeader),
    ("entry_without_shape", header_of({"dtype": "U8"}), errors.InvalidTensorHeader),
    ("unknown_dtype", header_of(slot(dtype="F64")), errors.InvalidTensorHeader),
    ("dtype_a_list", header_of(slot(dtype=[])), errors.InvalidTensorHeader),
    ("negative_length", header_of(slot(shape=(-4,))), errors.InvalidTensorHeader),
    ("shape_of_floats", header_of(slot(shape=(4.0,))), errors.InvalidTensorHeader),
    ("product_overflows_64_bits", header_of(slot(shape=(2**30,) * 3)), errors.InvalidTensorHeader),
    ("nine_dimensions", header_of(slot(shape=(1,) * 9)), errors.InvalidTensorHeader),
    ("three_offsets", header_of(slot(offsets=(0, 2, 4))), errors.InvalidTensorHeader),
    ("offsets_do_not_match", header_of(slot(offsets=(0, 5))), errors.InvalidTensorHeader),
    ("offsets_reversed", header_of(slot(offsets=(4, 0))), errors.InvalidTensorHeader),
    ("tensors_overlap", header_of(slot(), slot(offsets=(2, 6)), slot(offsets=(4, 8))), errors.TensorOverlap),
    ("gap_between_tensors", header_of(slot(shape=(2,), offsets=(0, 2)), slot(offsets=(4, 8))), errors.TensorOverlap),
    ("bytes_after_the_last", header_of(slot()), errors.TensorOverlap),
    ("range_past_the_end", header_of(slot(shape=(9,), offsets=(0, 9))), errors.BlobTruncated),
]


@pytest.mark.parametrize(("change", "error"), [row[1:] for row in HEADER_FAULTS], ids=[r[0] for r in HEADER_FAULTS])
def test_each_fault_of_a_tensor_header_has_its_error(bundle, change, error):
    forger = Forger(bundle)
    forger.replace_bytes(TRUNK_TITLE, change)
    with pytest.raises(error) as caught:
        read_bundle(bundle.layout, forger.publish())
    assert type(caught.value) is error


def blob_of(bundle: TinyBundle, title: str) -> Path:
    return bundle.layout.blob_path(Forger(bundle).layer(title)["digest"])


def test_a_truncated_blob_is_refused(bundle):
    path = blob_of(bundle, TRUNK_TITLE)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.BlobTruncated, match=r"trunk\.safetensors"):
        read_bundle(bundle.layout, bundle.digest)


def test_a_swapped_blob_is_refused(bundle):
    path = blob_of(bundle, block_title(0))
    path.write_bytes(blob_of(bundle, block_title(1)).read_bytes())
    with pytest.raises(errors.DigestMismatch, match="block-00000"):
        read_bundle(bundle.layout, bundle.digest)


def test_a_missing_blob_is_refused(bundle):
    blob_of(bundle, TRUNK_TITLE).unlink()
    with pytest.raises(errors.BlobMissing, match=r"trunk\.safetensors"):
        read_bundle(bundle.layout, bundle.digest)


def test_a_missing_configuration_is_refused(bundle):
    bundle.layout.blob_path(Forger(bundle).manifest["config"]["digest"]).unlink()
    with pytest.raises(errors.BlobMissing, match="configuration"):
        read_bundle(bundle.layout, bundle.digest)


def test_a_changed_manifest_is_refused(bundle):
    path = bundle.layout.blob_path(bundle.digest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(errors.DigestMismatch):
        read_bundle(bundle.layout, bundle.digest)


def test_a_bundle_that_is_not_there_is_not_found(bundle):
    with pytest.raises(errors.NotFound):
        read_bundle(bundle.layout, "sha256:" + "0" * 64)


MANIFEST_FAULTS = [
    ("no_json", lambda _: b"{", errors.InvalidManifest),
    ("no_object", lambda _: b"[]", errors.InvalidManifest),
    ("a_key_twice", lambda _: b'{"layers": 1, "layers": 2}', errors.InvalidManifest),
    ("nan", lambda _: b'{"schemaVersion": NaN}', errors.InvalidManifest),
    ("five_mebibytes", lambda _: b" " * (5 * 2**20), errors.LimitExceeded),
    ("other_artifact", lambda m: m | {"artifactType": "application/x"}, errors.InvalidManifest),
    ("newer_major", lambda m: m | {"artifactType": "application/vnd.zo-device.bundle.v2+json"}, errors.UpgradeNeeded),
    ("other_schema", lambda m: m | {"schemaVersion": 1}, errors.InvalidManifest),
    ("no_layers", lambda m: m | {"layers": []}, errors.InvalidManifest),
    ("unknown_field", lambda m: m | {"script": "x"}, errors.InvalidManifest),
    ("size_a_string", lambda m: m | {"config": m["config"] | {"size": "1"}}, errors.InvalidManifest),
    ("size_negative", lambda m: m | {"config": m["config"] | {"size": -1}}, errors.InvalidManifest),
    ("digest_a_path", lambda m: m | {"config": m["config"] | {"digest": "sha256:../../x"}}, errors.InvalidManifest),
    (
        "digest_upper_case",
        lambda m: m | {"config": m["config"] | {"digest": "sha256:" + "A" * 64}},
        errors.InvalidManifest,
    ),
    ("title_twice", lambda m: m | {"layers": [m["layers"][0]] * 2}, errors.InvalidManifest),
    ("title_a_path", lambda m: m | {"layers": [retitled(m["layers"][0], "../x")]}, errors.InvalidManifest),
    (
        "trunk_not_listed",
        lambda m: m | {"layers": [x for x in m["layers"] if "trunk" not in str(x)]},
        errors.BlobMissing,
    ),
]


def retitled(layer: dict[str, Any], title: str) -> dict[str, Any]:
    return layer | {"annotations": {"org.opencontainers.image.title": title}}


@pytest.mark.parametrize(("change", "error"), [row[1:] for row in MANIFEST_FAULTS], ids=[r[0] for r in MANIFEST_FAULTS])
def test_each_fault_of_a_manifest_has_its_error(bundle, change, error):
    forger = Forger(bundle)
    changed = change(forger.manifest)
    data = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    with pytest.raises(error):
        read_bundle(bundle.layout, forger.publish_manifest(data))


def first_tensor(**changes: object) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda config: config | {"tensors": [config["tensors"][0] | changes, *config["tensors"][1:]]}


CONFIG_FAULTS = [
    ("newer_format", lambda c: c | {"format_version": "2.0"}, errors.UpgradeNeeded),
    ("newer_client", lambda c: c | {"minimum_client_version": "9.0.0"}, errors.UpgradeNeeded),
    (
        "newer_client_and_a_key_that_only_it_knows",
        lambda c: c | {"minimum_client_version": "9.0.0", "new": 1},
        errors.UpgradeNeeded,
    ),
    ("sensitive_values_in_the_trunk", first_tensor(blob=TRUNK_TITLE), errors.InvalidBundleConfig),
    (
        "no_weight_of_a_block",
        lambda c: c | {"tensors": [t | {"blob": TRUNK_TITLE, "sensitive_count": 0} for t in c["tensors"]]},
        errors.InvalidBundleConfig,
    ),
    ("no_tensors", lambda c: c | {"tensors": []}, errors.InvalidBundleConfig),
    ("unknown_field", lambda c: c | {"module": "os"}, errors.InvalidBundleConfig),
    ("two_to_the_31_elements", first_tensor(shape=[2**16, 2**15]), errors.InvalidBundleConfig),
    ("more_sensitive_than_weights", first_tensor(sensitive_count=2000), errors.InvalidBundleConfig),
    ("no_codebook_and_no_scale", first_tensor(codebook="none"), errors.InvalidBundleConfig),
    ("bias_without_groups", first_tensor(has_bias=True), errors.InvalidBundleConfig),
    ("five_bits", first_tensor(bits=5), errors.InvalidBundleConfig),
    ("zero_rows", first_tensor(shape=[0, 32]), errors.InvalidBundleConfig),
    ("name_twice", first_tensor(name="model.layers.0.self_attn.k_proj.weight"), errors.InvalidBundleConfig),
    ("name_a_path", first_tensor(name="../../x"), errors.InvalidBundleConfig),
    ("other_shape", first_tensor(shape=[32, 34]), errors.TensorMismatch),
    ("blob_not_listed", first_tensor(blob="block-99999.safetensors"), errors.BlobMissing),
    ("chunk_digest_malformed", lambda c: c | {"chunks": {"sha256:x": []}}, errors.InvalidBundleConfig),
    ("block_not_mentioned", lambda c: without_block(c, 1), errors.TensorMismatch),
]


def without_block(config: dict[str, Any], block: int) -> dict[str, Any]:
    kept = {
        part: [entry for entry in config[part] if entry["blob"] != block_title(block)]
        for part in ("tensors", "dense_parameters")
    }
    return config | kept


@pytest.mark.parametrize(("change", "error"), [row[1:] for row in CONFIG_FAULTS], ids=[r[0] for r in CONFIG_FAULTS])
def test_each_fault_of_a_configuration_has_its_error(bundle, change, error):
    forger = Forger(bundle)
    forger.config = change(forger.config)
    with pytest.raises(error):
        read_bundle(bundle.layout, forger.publish(), client_version=(0, 1, 0))


def test_global_ranks_are_a_permutation_over_all_tensors(bundle):
    forger = Forger(bundle)
    forger.config["mask"]["scope"] = "global"
    with pytest.raises(errors.RanksInvalid, match="whole mask"):
        read_bundle(bundle.layout, forger.publish())

    def count_through(tensors: Tensors) -> Tensors:
        names = [name for name in tensors if name.endswith(".rank")]
        ranks = {name: np.arange(8, dtype=np.int32) + 8 * place for place, name in enumerate(names)}
        return tensors | ranks

    forger.replace_tensors(SENSITIVE_TITLE, count_through)
    assert read_bundle(bundle.layout, forger.publish()).config.mask.scope == "global"


def test_long_blobs_have_a_chunk_table_and_short_ones_none(bundle):
    read = read_bundle(bundle.layout, bundle.digest)
    for layer in read.manifest.layers:
        pieces = read.config.chunks.get(layer.digest)
        assert (pieces is not None) == (layer.size > 4096)
        if pieces is not None:
            data = bundle.layout.blob_path(layer.digest).read_bytes()
            assert pieces == [digest_of_bytes(data[at : at + 4096]) for at in range(0, len(data), 4096)]


def test_chunks_of_an_exact_multiple_end_without_an_empty_one(tmp_path):
    path = tmp_path / "blob"
    path.write_bytes(b"ab" * 4096)
    assert chunk_digests(path, 4096) == [digest_of_bytes(b"ab" * 2048)] * 2


def test_the_same_input_gives_the_same_digest(tmp_path, bundle):
    assert make_tiny_bundle(tmp_path / "again").digest == bundle.digest


def test_writing_again_changes_nothing(bundle):
    before = {path: path.stat().st_mtime_ns for path in bundle.layout.blobs.iterdir()}
    make_tiny_bundle(bundle.layout.root)
    assert {path: path.stat().st_mtime_ns for path in bundle.layout.blobs.iterdir()}.keys() == before.keys()


def test_reading_leaves_no_trace_in_the_store(bundle):
    before = sorted(path.name for path in bundle.layout.root.rglob("*"))
    read_bundle(bundle.layout, bundle.digest, verify_digests=False)
    assert sorted(path.name for path in bundle.layout.root.rglob("*")) == before


def test_a_descriptor_is_written_in_the_registrys_words():
    descriptor = Descriptor(media_type="a/b", digest="sha256:" + "0" * 64, size=3)
    assert json.loads(descriptor.to_bytes()) == {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 3}


def test_a_store_that_is_not_there_has_no_references(tmp_path):
    assert ImageLayout(tmp_path / "none").references() == {}
    assert not ImageLayout(tmp_path / "none").exists


@pytest.mark.parametrize(
    ("part", "title"),
    [(part, block_title(0)) for part in ("codes", "lut")]
    + [(part, SENSITIVE_TITLE) for part in ("indices", "rank", "values")],
)
def test_a_parameter_named_as_a_part_of_a_quantised_weight_is_refused(
    bundle: TinyBundle, part: str, title: str
) -> None:
    """It would take the place of the part in what the blob is expected to hold."""
    forger = Forger(bundle)
    forger.config["dense_parameters"].append({"name": f"{FIRST}.{part}", "shape": [3], "blob": title})
    with pytest.raises(errors.InvalidBundleConfig, match="quantised weight's part"):
        read_bundle(bundle.layout, forger.publish())


def test_a_parameter_may_be_named_as_a_part_that_lies_in_another_blob(bundle: TinyBundle) -> None:
    forger = Forger(bundle)
    name = f"{FIRST}.codes"
    forger.config["dense_parameters"].append({"name": name, "shape": [3], "blob": TRUNK_TITLE})
    forger.replace_tensors(TRUNK_TITLE, lambda tensors: tensors | {name: np.ones(3, np.float16)})
    assert read_bundle(bundle.layout, forger.publish()).config.dense_parameters[-1].name == name


def test_a_blob_with_other_bytes_is_named_before_what_its_bytes_say(bundle: TinyBundle) -> None:
    forger = Forger(bundle)
    path = bundle.layout.blob_path(forger.manifest["config"]["digest"])
    path.write_bytes(b"{".ljust(path.stat().st_size))
    with pytest.raises(errors.DigestMismatch, match="configuration"):
        read_bundle(bundle.layout, bundle.digest)


def test_opened_sensitive_values_need_their_header_no_more(bundle: TinyBundle) -> None:
    read = read_bundle(bundle.layout, bundle.digest)
    opened, expected = read.open_sensitive(), read.sensitive(FIRST)
    with read.path(SENSITIVE_TITLE).open("r+b") as file:
        file.write(bytes(8))
    mask, values = opened.read(FIRST)
    np.testing.assert_array_equal(mask.indices, expected[0].indices)
    np.testing.assert_array_equal(mask.rank, expected[0].rank)
    np.testing.assert_array_equal(values, expected[1])
    with pytest.raises(errors.InvalidTensorHeader):
        read.open_sensitive()
