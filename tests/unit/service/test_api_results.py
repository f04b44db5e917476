"""What a search found, over HTTP: trials, curves, structures, the front, files, comparisons."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from models.spec import NetworkSpec
from models.structures import LowRank
from search.profile_report import ProfileReport
from search.report import Report
from service import jobs
from tests.serving import SPEC, Service, begin, end, play, report_curve, serving


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def search_id(service: Service) -> str:
    found = service.submit()
    play(service, found)
    return found


def test_trials_are_sorted_filtered_and_paged(service: Service, search_id: str) -> None:
    def numbers(query: str) -> list[int]:
        items = service.http.get(f"/searches/{search_id}/trials?{query}").json()["items"]
        return [item["number"] for item in items]

    assert numbers("") == [0, 1, 2, 3, 4, 5]
    assert numbers("sort=-number&kind=candidate") == [4, 3]
    assert numbers("sort=validation_loss&state=COMPLETE") == [0, 3, 4, 1, 2, 5]
    page = service.http.get(f"/searches/{search_id}/trials?sort=-cost&limit=4").json()
    rest = service.http.get(page["next"]).json()
    assert [item["number"] for item in page["items"] + rest["items"]] == [0, 1, 4, 3, 2, 5]
    assert rest["next"] is None


def test_a_trial_says_what_it_became(service: Service, search_id: str) -> None:
    trial = service.http.get(f"/searches/{search_id}/trials/3").json()
    assert (trial["kind"], trial["state"], trial["validation_loss"]) == (
        *("candidate", "COMPLETE"),
        pytest.approx(0.33),
    )
    assert service.http.get(trial["links"]["metrics"]).json() == {
        "curves": {"validation_loss": [[1, 1.0], [2, pytest.approx(0.33)]]}
    }


def test_curves_are_thinned_but_keep_their_extremes(service: Service) -> None:
    search_id = service.submit()
    curve = dict.fromkeys(range(1, 2000), 1.0) | {700: 9.0, 1400: -9.0}
    claim = begin(service, search_id, 0)
    report_curve(service, claim, curve)
    answer = service.http.get(f"/searches/{search_id}/trials/0/metrics?max_points=50")
    points = answer.json()["curves"]["validation_loss"]
    assert len(points) <= 50
    assert [700, 9.0] in points
    assert [1400, -9.0] in points
    end(service, claim, jobs.Ending("FAILED", reason="not_finite", sentence="NaN"))


def test_a_structure_is_counted_layer_by_layer(service: Service, search_id: str) -> None:
    found = service.http.get(f"/searches/{search_id}/trials/1/structure").json()
    first = found["layers"][0]
    assert first["structure"] == {"kind": "low_rank", "rank": 4}
    assert (first["size"], first["share"]) == (4 * (64 + 32), pytest.approx(384 / 2048))
    assert found["cost"] == sum(layer["cost"] for layer in found["layers"] if layer["eligible"])
    assert not found["layers"][-1]["eligible"]
    NetworkSpec.model_validate(found["network"])


def test_a_structure_is_drawn_without_anything_that_runs(service: Service, search_id: str) -> None:
    answer = service.http.get(f"/searches/{search_id}/trials/3/structure.svg")
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert answer.text.startswith("<svg")
    assert "<script" not in answer.text
    assert "style=" not in answer.text  # the policy of the pages would not apply it


def test_what_is_not_there_yet_is_404_with_the_reason(service: Service) -> None:
    waiting = service.submit()
    for path in ("trials/0/structure", "trials/0/structure.svg", "report", "profile"):
        answer = service.http.get(f"/searches/{waiting}/{path}")
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:matnas:problem:not_yet_there"
    assert service.http.get(f"/searches/{waiting}/trials/99").status_code == 404
    assert service.http.get(f"/searches/{waiting}/trials/{10**30}").status_code == 422
    assert service.http.get(f"/compare?searches={waiting},{waiting}").status_code == 404


def test_the_front_holds_what_nothing_beats(service: Service, search_id: str) -> None:
    items = service.http.get(f"/searches/{search_id}/front").json()["items"]
    best = {item["number"] for item in items if item["on_front"]}
    for item in items:
        beaten = any(
            other["validation_loss"] < item["validation_loss"] and other["cost"] < item["cost"]
            for other in items
        )
        assert not (beaten and item["number"] in best)
    assert 0 in best


def test_the_cheapest_network_above_a_floor_is_named(service: Service, search_id: str) -> None:
    def front(query: str) -> Any:
        return service.http.get(f"/searches/{search_id}/front?{query}").json()

    assert front("")["cheapest"] is None
    assert front("metric_floor=0.95")["cheapest"] is None
    found = front("metric_floor=0.85")
    assert found["cheapest"]["cost"] == min(item["cost"] for item in found["items"])
    assert (found["hypervolume"], found["reference_point"]) == (0.25, [1.1, 1.1, 1.1])
    refused = service.http.get(f"/searches/{search_id}/front?metric_floor=nan")
    assert refused.status_code == 422


def test_what_mattered_is_told_once_it_is_measured(service: Service, search_id: str) -> None:
    link = service.http.get(f"/searches/{search_id}").json()["links"]["importances"]
    assert service.http.get(link).json() == {
        "items": [{"budget_index": 0, "name": "shrink", "fanova": 0.75, "ped_anova": 0.5}]
    }
    waiting = service.submit()
    assert service.http.get(f"/searches/{waiting}/importances").status_code == 404


def test_several_budgets_have_a_best_and_a_winner_each(service: Service) -> None:
    found = service.submit(budget={"ratios": [0.3, 0.2]})
    play(service, found)
    search = service.http.get(f"/searches/{found}").json()
    dense = search["dense_cost"]
    assert search["budgets"] == [int(0.3 * dense), int(0.2 * dense)]
    assert search["budget"] == search["budgets"][0]
    report = Report.model_validate(service.http.get(f"/searches/{found}/report").json())
    assert report.winners == {5, 7}
    trials = service.http.get(f"/searches/{found}/trials?kind=candidate").json()["items"]
    assert [(t["name"], t["budget_index"]) for t in trials] == [
        ("candidate 5 at 30 %", 0),
        ("candidate 6 at 30 %", 0),
        ("candidate 7 at 20 %", 1),
        ("candidate 8 at 20 %", 1),
    ]
    for best, budget in zip(search["bests"], search["budgets"], strict=True):
        assert best is None or best["cost"] <= budget == best["budget"]
    for path in (f"/view/{found}", "/", f"/view/compare?trials={found}-5,{found}-7"):
        assert service.http.get(path).status_code == 200
    page = service.http.get(f"/view/{found}").text
    assert "What mattered" in page
    assert page.count("75.0 %") == 2
    assert page.count("The winner: ") == 2
    assert page.count(">winner</span>") == 2
    assert "30.0, 20.0 % of" in service.http.get("/").text


def test_a_search_with_several_objectives_counts_a_candidate_for_every_budget_it_keeps(
    service: Service,
) -> None:
    found = service.submit(
        budget={"ratios": [0.9, 0.3]},
        objectives=["validation_loss", "latency"],
        space=SPEC["space"],
    )
    play(service, found)
    search = service.http.get(f"/searches/{found}").json()
    assert search["progress"]["total"] == 1 + 2 * 2 + 2 + 1
    numbers = [None if best is None else best["number"] for best in search["bests"]]
    assert numbers[0] == 5
    report = Report.model_validate(service.http.get(f"/searches/{found}/report").json())
    assert {row.budget_index for row in report.candidates} == {None}
    assert service.http.get(f"/view/{found}").status_code == 200
    refused = service.http.post(
        "/searches", json=SPEC | {"objectives": ["validation_loss", "cost"]}
    )
    assert (refused.status_code, refused.json()["field"]) == (422, "budget")


def test_a_budget_of_several_that_cannot_be_reached_is_refused(service: Service) -> None:
    body = SPEC | {"budget": {"ratios": [0.3, 0.0001]}}
    answer = service.http.post("/searches", json=body)
    assert answer.status_code == 422
    assert answer.json()["field"] == "budget.ratios[1]"


def test_two_networks_are_compared_layer_by_layer(service: Service, search_id: str) -> None:
    answer = service.http.get(f"/compare?trials={search_id}:1,{search_id}-3").json()
    assert [one["trial"]["number"] for one in answer["trials"]] == [1, 3]
    assert [layer["name"] for layer in answer["layers"]] == ["layers.0", "layers.1", "head"]
    kinds = [cell["structure"]["kind"] for cell in answer["layers"][0]["cells"]]
    assert kinds == ["low_rank", "gblr"]
    best = service.http.get(f"/compare?searches={search_id},{search_id}").json()
    assert [one["trial"]["number"] for one in best["trials"]] == [3, 3]


@pytest.mark.parametrize("query", ["", "trials=a", "trials=" + "a," * 9])
def test_a_comparison_needs_two_to_eight(service: Service, query: str) -> None:
    answer = service.http.get(f"/compare?{query}")
    assert answer.status_code == 422
    assert "2 to 8" in answer.json()["detail"]


def test_the_report_is_the_measurement(service: Service, search_id: str) -> None:
    report = Report.model_validate(service.http.get(f"/searches/{search_id}/report").json())
    assert report.winner.number == 3
    assert report.winner.forms == {"layers.0": "dense", "layers.1": "sliced"}
    assert report.winner.run_dense == ("layers.0",)


def test_the_profile_is_what_the_reference_told_of_its_layers(
    service: Service, search_id: str
) -> None:
    answer = service.http.get(service.http.get(f"/searches/{search_id}").json()["links"]["profile"])
    found = ProfileReport.model_validate(answer.json())
    assert [layer.name for layer in found.layers] == ["layers.0", "layers.1"]
    assert found.allocations[0].layers[0].structure == LowRank(rank=1)
    tag = {"If-None-Match": answer.headers["ETag"]}
    again = service.http.get(f"/searches/{search_id}/profile", headers=tag)
    assert (again.status_code, again.content) == (304, b"")


def test_exported_files_are_downloaded_whole_in_part_and_once(
    service: Service, search_id: str
) -> None:
    items = service.http.get(f"/searches/{search_id}/artifacts").json()["items"]
    names = {(item["trial"], item["name"]) for item in items}
    assert {(None, "report.json"), (3, "network.json"), (3, "network.safetensors")} <= names
    for item in items:
        found = service.http.get(item["link"])
        digest = hashlib.sha256(found.content)
        assert (len(found.content), digest.hexdigest()) == (item["bytes"], item["sha256"])
        checksum = base64.b64encode(digest.digest()).decode()
        assert found.headers["repr-digest"] == f"sha-256=:{checksum}:"
    link = next(i["link"] for i in items if i["name"].endswith("tensors") and i["trial"] == 3)
    whole = service.http.get(link)
    assert whole.content == bytes(range(200))
    assert whole.headers["etag"] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    part = service.http.get(link, headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, bytes(range(10, 20)))
    headers = {"If-None-Match": whole.headers["etag"]}
    assert service.http.get(link, headers=headers).status_code == 304
    beyond = service.http.get(link, headers={"Range": "bytes=900-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-type"] == "application/problem+json"
    assert beyond.headers["content-range"] == "bytes */200"


@pytest.mark.parametrize("name", ["..%2F..%2Fmatnas.db", "art_0", "{}-3-..%2Fx", "{}-3-other.json"])
def test_no_name_leads_to_another_file(service: Service, search_id: str, name: str) -> None:
    answer = service.http.get(f"/artifacts/{name.format(search_id)}")
    assert answer.status_code == 404
    assert str(service.settings.home) not in answer.text


def test_a_matrix_is_uploaded_named_by_a_spec_and_given_back(service: Service) -> None:
    content = save({"w": np.ones((24, 16), dtype=np.float32)})
    answer = service.http.put("/artifacts", content=content)
    body = answer.json()
    assert answer.status_code == 201
    assert (body["rows"], body["columns"]) == (24, 16)
    assert service.http.get(answer.headers["location"]).content == content
    service.submit(
        model={"kind": "matrix", "artifact": body["id"]}, dataset=None, budget={"ratio": 0.5}
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a safetensors file"),
        (b"PK\x03\x04 a zip, or a pickle", "not a safetensors file"),
        (save({"w": np.ones((4, 4), dtype=np.float32)})[:-3], "cut off"),
        (save({"w": np.ones((4, 4, 1), dtype=np.float32)}), "2 dimensions"),
        (save({"w": np.ones((4, 4), dtype=np.int32)}), "type I32"),
        (save({"w": np.full((4, 4), np.nan, dtype=np.float32)}), "NaN"),
    ],
)
def test_a_bad_upload_is_refused_and_nothing_is_kept(
    service: Service, content: bytes, sentence: str
) -> None:
    kept = set(service.files.uploads.glob("*")) if service.files.uploads.exists() else set()
    answer = service.http.put("/artifacts", content=content)
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]
    assert answer.json()["field"].startswith("file")
    assert set(service.files.uploads.glob("*")) == kept


def test_an_upload_is_cut_off_at_the_limit_even_without_a_length(tmp_path: Path) -> None:
    with serving(tmp_path, max_upload_bytes=1000, max_body_bytes=100) as small:
        for content in (b"x" * 2000, iter([b"x" * 600] * 3)):
            answer = small.http.put("/artifacts", content=content)
            assert answer.status_code == 413
            assert answer.headers["content-type"] == "application/problem+json"
        too_long = small.http.post("/searches", json={"name": "x" * 200})
        assert too_long.status_code == 413
        assert list(small.files.uploads.glob("*")) == []
