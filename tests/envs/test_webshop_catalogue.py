"""The catalogue: what it reads from the official files, what it stores, and its errors for bad files."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.core import UnknownNameError
from envs.webshop.catalogue import (
    CatalogueError,
    CatalogueNotFoundError,
    HumanInstruction,
    JSONFileError,
    document,
    load_catalogue,
)
from envs.webshop.json_stream import stream_list, stream_object
from envs.webshop.nouns import NounsNotFoundError, key_of, shipped_nouns
from envs.webshop.products import pack, parse_product, unpack
from tests.envs.webshop_shop import ATTRIBUTES, HUMAN, PRODUCTS, record, write_catalogue


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "webshop"


def write(folder: Path, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in ({"items_shuffle": PRODUCTS, "items_ins_v2": {}} | files).items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


# -- products ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pricing", "prices", "tag"),
    [
        ("$27", (27.0,), "$27.0"),
        ("$20.66$29.20", (20.66, 29.2), "$20.66 to $29.2"),
        ("from $1,234.50 to $9 now", (1234.5, 9.0), "$1234.5 to $9.0"),
        ("$3 $2 $1", (3.0, 2.0), "$3.0 to $2.0"),
        ("", (100.0,), "$100.0"),
        (None, (100.0,), "$100.0"),
    ],
)
def test_prices(pricing: str | None, prices: tuple[float, ...], tag: str) -> None:
    product = parse_product(record("A", "a", pricing=pricing), {}, [])
    assert (product.prices, product.price_tag) == (prices, tag)


def test_the_text_of_a_product_is_the_official_one() -> None:
    options = {"Color": [{"value": " Navy/White "}, {"value": "RED"}], "None": None, "Size": []}
    raw = record("A", "A Lamp", customization_options=options, query=" LAMPS ", small_description="one text", images=[])
    product = parse_product(raw, {}, HUMAN["LAMP000001"])
    assert product.options == {"color": ("navy | white", "red"), "size": ()}
    assert (product.query, product.bullets, product.image) == ("lamps", ("one text",), "")
    assert product.attributes == ("DUMMY_ATTR",)
    assert product.human[0] == HumanInstruction("i want a red lamp.", ("dimmable",), ("red",))
    assert document(product) == "a lamp  one text color: navy | white, red, and size: "
    assert parse_product(raw | {"customization_options": ""}, {"attributes": []}, []).attributes == ()


text = st.text(max_size=8)


@settings(max_examples=40)
@given(
    text, text, st.lists(text, max_size=3), st.dictionaries(text, st.lists(text, max_size=3), max_size=3), st.booleans()
)
def test_stored_products_are_read_back(
    name: str, description: str, bullets: list[str], options: dict[str, list[str]], instructed: bool
) -> None:
    raw = record("A", name, options, full_description=description, small_description=bullets)
    product = parse_product(raw, ATTRIBUTES["LAMP000001"] if instructed else {}, HUMAN["LAMP000001"])
    assert unpack(pack(product)) == product
    assert list(unpack(pack(product)).options) == list(product.options)


# -- the catalogue ----------------------------------------------------------------------------------------------------
def test_products_by_number_and_asin(tmp_path: Path) -> None:
    catalogue = load_catalogue(write_catalogue(tmp_path))
    assert len(catalogue) == len(PRODUCTS)
    assert list(catalogue.asins) == [product["asin"] for product in PRODUCTS]
    for number, asin in enumerate(catalogue.asins):
        product = catalogue.product(number)
        assert (catalogue.index(asin), product.asin) == (number, asin)
        low, high = catalogue.prices[number].tolist()
        assert product.prices == ((low,) if math.isnan(high) else (low, high))
        assert catalogue.instructed[number] == (product.instruction is not None)
        assert catalogue.human_instructed[number] == bool(product.human)
        assert list(catalogue.nouns(number)) == product.name.lower().split()
    assert catalogue.of_category("bulbs") == list(range(3, 63))
    assert catalogue.of_query("chairs") == [2]
    assert catalogue.of_query("nothing") == []
    for number in (-1, len(PRODUCTS)):
        with pytest.raises(IndexError):
            catalogue.product(number)


@pytest.mark.parametrize("asin", ["LAMP00001", "", "Z", "LAMP0000011", "lamp000001", "\0", "é" * 20])
def test_an_unknown_asin(tmp_path: Path, asin: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown product"):
        load_catalogue(write_catalogue(tmp_path)).index(asin)


def test_which_records_are_products(tmp_path: Path) -> None:
    products = [
        record("A", "first"),
        record("nan", "x"),
        record("12345678901", "x"),
        record("A", "second"),
        record("B", "b"),
    ]
    catalogue = load_catalogue(write(tmp_path / "shop", items_shuffle=products))
    assert [catalogue.product(number).name for number in range(len(catalogue))] == ["first", "b"]


def test_files_are_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_catalogue(tmp_path)
    first = load_catalogue(folder)
    monkeypatch.setattr("envs.webshop.catalogue.build", lambda *_: pytest.fail("read again"))
    again = load_catalogue(folder)
    assert (again.content_hash, again.product(0)) == (first.content_hash, first.product(0))
    assert [path.name for path in cache.iterdir()] == [first.folder.name]  # nothing half-written beside it


def test_a_changed_file_is_a_different_catalogue(tmp_path: Path) -> None:
    folder = write_catalogue(tmp_path)
    hashes = [load_catalogue(folder).content_hash]
    for name in ("items_shuffle", "items_ins_v2", "items_human_ins", "title_nouns"):
        path = folder / f"{name}.json"
        path.write_text(path.read_text() + "\n")
        hashes.append(load_catalogue(folder).content_hash)
    (folder / "items_human_ins.json").unlink()
    hashes.append(load_catalogue(folder).content_hash)
    assert len(set(hashes)) == 6


@pytest.mark.parametrize("damaged", ["meta.json", "records.bin", "prices.npy", "records.npy", "nouns.bin"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str) -> None:
    folder = write_catalogue(tmp_path)
    kept = load_catalogue(folder).folder
    path = kept / damaged
    path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        catalogue = load_catalogue(folder)
    assert "damaged" in caplog.text
    assert catalogue.product(0).name == PRODUCTS[0]["name"]


def test_a_simultaneous_build_keeps_the_first_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_catalogue(tmp_path)
    from envs.webshop import catalogue as module

    build = module.build
    monkeypatch.setattr(module, "build", lambda *arguments: (build(*arguments), build(*arguments)))
    assert load_catalogue(folder).product(0).asin == "LAMP000001"


def test_the_hash_of_a_large_file_is_remembered(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.checksums.ALWAYS_HASHED", 10)
    folder = write_catalogue(tmp_path)
    found = load_catalogue(folder).content_hash
    assert len(list((cache.parent / "hashes").iterdir())) == 4
    assert load_catalogue(folder).content_hash == found
    path = folder / "items_ins_v2.json"
    path.write_text(path.read_text() + "\n")
    assert load_catalogue(folder).content_hash != found


# -- nouns ------------------------------------------------------------------------------------------------------------
def test_a_catalogue_without_nouns_raises(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path / "shop"))
    assert not catalogue.has_nouns
    with pytest.raises(NounsNotFoundError, match=r"scripts\.download webshop --nouns"):
        catalogue.nouns(0)


def test_shipped_nouns_are_found_by_name(tmp_path: Path) -> None:
    name = "Vhomes Lights Reclaimed Wood Console Table The Genessis Collection Sofa-Tables"
    catalogue = load_catalogue(write(tmp_path / "shop", items_shuffle=[record("ANY", name)]))
    nouns = ["vhomes", "lights", "reclaimed", "wood", "console", "table", "genessis", "collection", "sofa", "tables"]
    assert list(catalogue.nouns(0)) == nouns == shipped_nouns()[key_of(name)]
    assert len(shipped_nouns()) == 1000


# -- bad files --------------------------------------------------------------------------------------------------------
def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(CatalogueNotFoundError, match=r"items_shuffle\*\.json.*scripts\.download webshop"):
        load_catalogue(tmp_path)
    with pytest.raises(CatalogueNotFoundError, match="no small catalogue"):
        load_catalogue(write(tmp_path / "shop"), "small")
    (tmp_path / "shop" / "items_ins_v2.json").unlink()
    with pytest.raises(CatalogueNotFoundError, match=r"no items_ins_v2\.json next to"):
        load_catalogue(tmp_path / "shop")
    with pytest.raises(UnknownNameError, match="did you mean 'small'"):
        load_catalogue(tmp_path / "shop", "smal")


def test_two_catalogues_in_one_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", items_shuffle_1000=PRODUCTS[:2], items_ins_v2_1000={}, items_human_ins=HUMAN)
    with pytest.raises(CatalogueNotFoundError, match=r"several catalogues.*items_shuffle_1000\.json.*'full', 'small'"):
        load_catalogue(folder)
    assert [len(load_catalogue(folder, size)) for size in ("small", "full")] == [2, len(PRODUCTS)]
    assert load_catalogue(folder, "small").human_instructed.tolist() == [True, False]


def broken(**fields: Any) -> list[dict[str, Any]]:
    return [record("GOOD", "good"), record("BAD", "bad") | fields]


@pytest.mark.parametrize(
    ("products", "message"),
    [
        (broken(pricing="free"), r"product 1, BAD: its pricing is 'free'"),
        (broken(pricing="$1.2.3"), "BAD: its pricing"),
        (broken(pricing=12), "BAD: its pricing"),
        (broken(name=None), "BAD: its name is None, expected a text"),
        (broken(category=3), "BAD: its category"),
        (broken(full_description=["a"]), "BAD: its full_description"),
        (broken(small_description=None), "BAD: its small_description"),
        (broken(customization_options={"size": ["a"]}), "BAD: its customization_options"),
        (broken(customization_options=["a"]), "BAD: its customization_options"),
        (broken(asin=7), "product 1 has no asin"),
        (broken(asin="a\0"), "product 1 has no asin"),
        (["text"], "product 0 has no asin"),
        ([], "no product in it"),
        ({}, "not a list in JSON, or cut off, at member 0: expected one of"),
        ("", "end of the file"),
        ("[", "not a list in JSON"),
        ('[{"asin": "A"', "cut off, at member 0"),
        (json.dumps(PRODUCTS)[:-10], "cut off, at member 62"),
        (json.dumps(PRODUCTS)[:-1], "cut off, at member 63"),
        (json.dumps(PRODUCTS) + "x", "'x' after the end"),
        ('[{"asin": "nan"} 2]', "cut off, at member 1: expected one of ',]'"),
        ("[" * 100_000, "cut off, at member 0"),
    ],
)
def test_bad_products_are_named(tmp_path: Path, cache: Path, products: Any, message: str) -> None:
    folder = write(tmp_path / "shop", items_shuffle=products)
    with pytest.raises(JSONFileError, match=message) as error:
        load_catalogue(folder)
    assert "items_shuffle.json" in str(error.value)
    assert not cache.exists() or not list(cache.iterdir())  # nothing is left


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items_ins_v2": {"OTHER": {"attributes": []}}}, r"none of its 1 products is in items_shuffle\.json"),
        ({"items_human_ins": {"OTHER": []}}, r"items_human_ins\.json: none of its 1 products"),
        ({"items_ins_v2": []}, "not an object in JSON"),
        ({"items_ins_v2": {"LAMP000001": []}}, r"LAMP000001 is \[\], expected a dict"),
        ({"items_ins_v2": {"LAMP000001": {"attributes": "x"}}}, "its attributes"),
        ({"items_ins_v2": {"LAMP000001": {"instruction": "find"}}}, "no instruction_attributes"),
        ({"items_human_ins": {"LAMP000001": {}}}, "expected a list of instructions"),
        ({"items_human_ins": {"LAMP000001": ["x"]}}, "a human instruction is 'x'"),
        ({"items_human_ins": {"LAMP000001": [{"instruction_attributes": []}]}}, "its instruction is None"),
        ({"title_nouns": {"LAMP000001": ["lamp"]}}, r"title_nouns\.json: no nouns of LAMP000002"),
        ({"title_nouns": {"LAMP000001": "lamp"}}, "expected a list"),
    ],
)
def test_bad_companions_are_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(JSONFileError if "JSON" in message else CatalogueError, match=message):
        load_catalogue(write(tmp_path / "shop", **files))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop")
    (folder / "items_shuffle.json").write_bytes(b'[{"asin": "\xff"}]')
    with pytest.raises(JSONFileError, match="can't decode"):
        load_catalogue(folder)


# -- JSON in pieces ---------------------------------------------------------------------------------------------------
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
@settings(max_examples=40, deadline=None)
@given(members=st.dictionaries(st.text(max_size=3), values, max_size=5), indent=st.sampled_from([None, 1]))
def test_chunks_of_a_stream_give_the_whole_object(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, members: dict[str, Any], indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "file.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("envs.webshop.json_stream._CHUNK", chunk)
        path.write_text(json.dumps(members, indent=indent), encoding="utf-8")
        assert dict(stream_object(path)) == members
        path.write_text(json.dumps([{"a": value} for value in members.values()], indent=indent), encoding="utf-8-sig")
        assert list(stream_list(path)) == [{"a": value} for value in members.values()]


# -- the official files -----------------------------------------------------------------------------------------------
@pytest.mark.skipif(
    not (Path(os.environ.get("POLYTURN_DATA", "/nowhere")) / "webshop" / "items_shuffle_1000.json").is_file(),
    reason="needs WebShop's 1,000 products (items_shuffle_1000.json) in $POLYTURN_DATA/webshop",
)
def test_the_official_thousand() -> None:
    catalogue = load_catalogue(Path(os.environ["POLYTURN_DATA"]) / "webshop", "small")
    assert len(catalogue) == 1000
    assert catalogue.has_nouns
    assert int(catalogue.instructed.sum()) == 415
    assert sum(not math.isnan(high) for _, high in catalogue.prices.tolist()) == 93
    assert sum(high < low for low, high in catalogue.prices.tolist()) == 3
    assert catalogue.product(catalogue.index("B06Y3VLDFB")).price_tag == "$877.8"
