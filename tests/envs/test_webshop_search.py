"""The search: terms as in Lucene's analyzer, ranks as in a slow and plain computation of BM25."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.webshop.analysis import analyze, stem, tokenize
from envs.webshop.catalogue import document, load_catalogue
from envs.webshop.postings import PostingsWriter
from envs.webshop.search import open_index
from tests.envs.webshop_shop import PRODUCTS, record, write_catalogue

OFFICIAL = Path(os.environ.get("POLYTURN_DATA", "/nowhere")) / "webshop"


# -- terms ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("to be or not to be", []),
        ("it's the women’s shoes", ["women", "shoe"]),
        ("O'NEILL's 12,000 x-large 3.5\" usb_c", ["o'neil", "12,000", "x", "larg", "3.5", "usb_c"]),
        ("u.s.a. title:shoes shoe* c++ 50%", ["u.s.a", "title:sho", "shoe", "c", "50"]),
        ("black|white black/white", ["black", "white", "black", "white"]),
        ("café crème ß ﬁne Ⅳ ² ½ inch", ["café", "crème", "ß", "ﬁne", "ⅳ", "inch"]),
        ("İstanbul ΟΔΟΣ ＡＢＣ", ["istanbul", "οδοσ", "ａｂｃ"]),
        ("鞋子 ひら カタカナ 한국어", ["鞋", "子", "ひ", "ら", "カタカナ", "한국어"]),
        ("coffee☕mug oz™ ☞♬", ["coffe", "☕", "mug", "oz", "™", "☞", "♬"]),
        ("👩‍❤️‍👨x 👍🏻 1️⃣2 🇫🇷🇩🇪", ["👩‍❤️‍👨", "x", "👍🏻", "1️⃣2", "🇫🇷", "🇩🇪"]),
        (
            "zero\u200bwidth soft\u00adhyphen e\u0301clair a\u00a0b",
            ["zero", "width", "soft\u00adhyphen", "e\u0301clair", "b"],
        ),
        ("א\"ב אב' א'ב", ['א"ב', "אב'", "א'ב"]),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert analyze(text) == terms


STEMS = """
caresses-caress ponies-poni ties-ti caress-caress cats-cat feed-feed agreed-agre plastered-plaster bled-bled
motoring-motor sing-sing conflated-conflat troubled-troubl sized-size hopping-hop tanned-tan falling-fall hissing-hiss
fizzed-fizz failing-fail filing-file happy-happi sky-sky relational-relat rational-ration possibly-possibl
geology-geologi trekking-trek apologies-apolog hopefulness-hope formalize-formal electrical-electr adjustment-adjust
adoption-adopt homologou-homolog bowdlerize-bowdler controll-control roll-roll rate-rate cease-ceas probate-probat
is-is as-as 11ing-11ing
"""


@pytest.mark.parametrize(("word", "expected"), [pair.split("-") for pair in STEMS.split()])
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_long_runs_are_cut_as_by_the_scanner() -> None:
    assert [len(token) for token in tokenize("a" * 600)] == [255, 255, 90]
    assert [len(token) for token in tokenize("𝐀" * 200)] == [127, 73]  # two code units each
    assert tokenize("a" * 254 + ".b") == ["a" * 254, "b"]  # the letter after the point is not seen
    assert tokenize("_" * 300 + "a") == ["_" * 254 + "a"]


@settings(max_examples=300)
@given(
    st.text(alphabet=st.one_of(st.characters(), st.sampled_from("a1_.:,'\"אカ漢ก\u0301\u200d\ufe0f\u20e3👩👍🏻❤🇫 ")))
)
def test_tokens_are_disjoint_parts_in_order(text: str) -> None:
    at = 0
    for token in tokenize(text):
        found = text.find(token, at)
        assert token
        assert found >= at
        at = found + len(token)
    assert tokenize(f"{text} {text}") == tokenize(text) * 2
    assert tokenize(text) == [token for word in text.split() for token in tokenize(word)]


# -- ranks ------------------------------------------------------------------------------------------------------------
def plain_scores(documents: list[list[str]], query: list[str]) -> list[float]:
    """Lucene's BM25Similarity, one float32 operation after the other."""
    f = np.float32
    filled = [terms for terms in documents if terms]
    average = f(sum(map(len, filled)) / len(filled))
    scores = []
    for terms in documents:
        norm = f(1) / (f(0.9) * ((f(1) - f(0.4)) + f(0.4) * f(byte4(len(terms))) / average))
        score = 0.0
        for term, times in Counter(query).items():
            df = sum(term in other for other in documents)
            if term in terms:
                weight = f(times) * f(math.log(1 + (len(filled) - df + 0.5) / (df + 0.5)))
                score += float(weight - weight / (f(1) + f(terms.count(term)) * norm))
        scores.append(float(f(score)))
    return scores


def byte4(length: int) -> int:
    """What is left of a length after `SmallFloat.intToByte4` and back: above 24, the four leading bits of the rest."""
    if length < 24:
        return length
    bits = max(0, (length - 24).bit_length() - 4)
    return 24 + ((length - 24) >> bits << bits)


def shop_of(folder: Path, names: list[str], **fields: object) -> Path:
    products = [record(f"P{number:09}", name, **fields) for number, name in enumerate(names)]
    (folder / "items_shuffle.json").write_text(json.dumps(products))
    (folder / "items_ins_v2.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "cache"))


VOCABULARY = "red blue desk lamp lamps chair oak of 3.5 鞋 x"
words = st.lists(st.sampled_from(VOCABULARY.split()), max_size=60).map(" ".join)


@pytest.mark.parametrize("worthwhile", [0, 1 << 17])  # postings, from which on the search tries to spare them
@settings(max_examples=40, deadline=None)
@given(names=st.lists(words, min_size=1, max_size=12), query=words, k=st.integers(1, 8))
def test_ranks_are_those_of_a_plain_computation(
    tmp_path_factory: pytest.TempPathFactory, worthwhile: int, names: list[str], query: str, k: int
) -> None:
    catalogue = load_catalogue(shop_of(tmp_path_factory.mktemp("shop"), names, small_description=[""]))
    documents = [analyze(document(catalogue.product(number))) for number in range(len(names))]
    expected = []
    if any(documents):
        scores = plain_scores(documents, analyze(query))
        expected = sorted((number for number, score in enumerate(scores) if score), key=lambda n: (-scores[n], n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("envs.webshop.search._WORTHWHILE", worthwhile)
        assert open_index(catalogue).search(query, k) == expected[:k]


def test_exact_ties_are_broken_by_asin(tmp_path: Path) -> None:
    products = [record(asin, "Desk Lamp") for asin in ("P3", "P1", "P20", "P2")]
    (tmp_path / "items_shuffle.json").write_text(json.dumps(products))
    (tmp_path / "items_ins_v2.json").write_text("{}")
    catalogue = load_catalogue(tmp_path)
    index = open_index(catalogue)
    assert [catalogue.asins[number] for number in index.search("lamp")] == ["P1", "P2", "P20", "P3"]
    assert index.search("lamp", 2) == [1, 3]
    scores = [score for _, score in index.scored("lamp")]
    assert np.diff(scores) == pytest.approx([-1e-6, -2e-6 + 1e-6, -1e-6], abs=1e-9)


def test_a_query_is_a_bag_of_words(tmp_path: Path) -> None:
    catalogue = load_catalogue(write_catalogue(tmp_path))
    index = open_index(catalogue)
    assert index.search(["desk", "lamp"]) == index.search("LAMP +desk*") != []
    assert catalogue.asins[index.search("lamp oak oak oak")[0]] == "CHAIR00001"
    assert len(index.search("any room")) == 50
    for nothing in ("", "   ", "the", "zzz", "\ud800", "\0", "🦜"):
        assert index.search(nothing) == []
    for number in range(len(PRODUCTS)):
        assert number in index.search(catalogue.product(number).name, 100)


def test_terms_that_share_a_key_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("postings", "search"):
        monkeypatch.setattr(f"envs.webshop.{module}.term_key", len)
    catalogue = load_catalogue(shop_of(tmp_path, ["red", "oak", "oak red", "blue"]))
    index = open_index(catalogue)
    assert index.search("red") == [0, 2]
    assert index.search("oak") == [1, 2]
    assert index.search("tin") == []


def test_postings_are_put_in_order_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"w{number % 7} w{number % 5} w{number % 5} common" for number in range(50)]
    whole = load_catalogue(shop_of(tmp_path, names))
    monkeypatch.setattr("envs.webshop.postings._BLOCK", 7)
    monkeypatch.setenv("POLYTURN_CACHE", str(tmp_path / "another"))
    blocks = load_catalogue(tmp_path)
    for query in ("w3", "w1 w2 common", "common"):
        assert open_index(blocks).scored(query, 40) == open_index(whole).scored(query, 40)
    assert not list(blocks.folder.glob("*.tmp"))


def test_no_terms_at_all(tmp_path: Path) -> None:
    writer = PostingsWriter(tmp_path)
    writer.add([])
    assert writer.close() == {"documents": 0, "tokens": 0, "terms": 0}


@pytest.mark.skipif(
    not (OFFICIAL / "items_shuffle_1000.json").is_file(),
    reason="needs WebShop's 1,000 products (items_shuffle_1000.json) in $POLYTURN_DATA/webshop",
)
def test_the_official_thousand() -> None:
    catalogue = load_catalogue(OFFICIAL, "small")
    index = open_index(catalogue)
    found = index.scored("im looking for a non-toxic concealer than contains argan oil, with rich color")
    assert [catalogue.asins[number] for number, _ in found[:3]] == ["B008QA6YOC", "B09D42HCTN", "B09M7M1YB3"]
    assert [score for _, score in found[:3]] == pytest.approx([9.3431, 7.8418, 7.1072], abs=1e-4)
    sizes = {
        "NOT shoes": 39,
        "1,000 watt": 6,
        "wi-fi router": 15,
        "{a b}": 28,
        "café crème": 2,
        "c++": 46,
        "🙂 coffee": 35,
    }
    assert {query: len(index.search(query)) for query in sizes} == sizes
