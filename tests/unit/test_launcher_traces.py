from pathlib import Path

import pytest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from typer.testing import CliRunner

from twinmesh_cli.main import app
from twinmesh_cli.otlp import spans_of
from twinmesh_cli.trace import in_tree_order
from twinmesh_cli.traces import Link, Span, TraceStore

_REQUEST = "aa" * 16
_COMMIT = "bb" * 16
_OTHER = "cc" * 16


def _span(trace: str, span: str, parent: str = "", *, start: int = 0, links: tuple[Link, ...] = ()) -> Span:
    return Span(
        trace_id=trace,
        span_id=span,
        parent_id=parent,
        service="svc",
        name=f"work-{span}",
        start_ns=start,
        end_ns=start + 1_000_000,
        failed=False,
        attributes={"key": "value"},
        links=links,
    )


def test_linked_traces_are_found_from_either_side(tmp_path: Path) -> None:
    request = [_span(_REQUEST, "01"), _span(_REQUEST, "02", "01", start=5)]
    commit = [
        _span(_COMMIT, "11", links=(Link(_REQUEST, "02"), Link(_OTHER, "21"))),
        _span(_COMMIT, "12", "11"),
    ]
    with TraceStore.writing(tmp_path / "traces") as store:
        store.add([*request, *commit, _span(_OTHER, "21")])

    with TraceStore.reading(tmp_path / "traces") as store:
        from_request, from_commit = store.view(_REQUEST), store.view(_COMMIT)
        assert store.view("dd" * 16) is None

    assert from_request is not None
    assert from_request.spans == tuple(request)
    assert from_request.linked == (tuple(commit),)
    assert from_commit is not None
    assert [spans[0].trace_id for spans in from_commit.linked] == [_REQUEST, _OTHER]


def test_only_the_newest_spans_are_kept(tmp_path: Path) -> None:
    with TraceStore.writing(tmp_path / "traces", kept_spans=3) as store:
        store.add([_span(_OTHER, "21", links=(Link(_REQUEST, "01"),))])
        store.add([_span(_REQUEST, f"0{number}", start=number) for number in range(3)])
        view = store.view(_REQUEST)

        assert store.view(_OTHER) is None
    assert view is not None
    assert len(view.spans) == 3
    assert view.linked == ()


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "traces"
    path.write_bytes(b"not a database at all" * 100)

    with TraceStore.writing(path) as store:
        store.add([_span(_REQUEST, "01")])
        assert store.view(_REQUEST) is not None


def test_parents_come_before_children_and_orphans_stand_at_the_root() -> None:
    spans = [
        _span(_REQUEST, "03", "02", start=3),
        _span(_REQUEST, "01", start=1),
        _span(_REQUEST, "02", "01", start=2),
        _span(_REQUEST, "05", "missing", start=0),
        _span(_REQUEST, "04", "01", start=4),
    ]

    assert [(depth, span.span_id) for depth, span in in_tree_order(spans)] == [
        (0, "05"),
        (0, "01"),
        (1, "02"),
        (2, "03"),
        (1, "04"),
    ]


def test_an_export_becomes_spans_with_service_values_and_links() -> None:
    def value(**kind: object) -> common_pb2.AnyValue:
        return common_pb2.AnyValue(**kind)  # type: ignore[arg-type]

    span = trace_pb2.Span(
        trace_id=bytes.fromhex(_REQUEST),
        span_id=bytes.fromhex("01" * 8),
        name="commit",
        start_time_unix_nano=10,
        end_time_unix_nano=30,
        attributes=[
            common_pb2.KeyValue(key="samples", value=value(int_value=7)),
            common_pb2.KeyValue(
                key="names",
                value=value(array_value=common_pb2.ArrayValue(values=[value(string_value="a")])),
            ),
        ],
        links=[trace_pb2.Span.Link(trace_id=bytes.fromhex(_OTHER), span_id=bytes.fromhex("02" * 8))],
        status=trace_pb2.Status(code=trace_pb2.Status.STATUS_CODE_ERROR),
    )
    name = common_pb2.KeyValue(key="service.name", value=value(string_value="ingest_svc"))
    exported = trace_pb2.ResourceSpans(
        resource=resource_pb2.Resource(attributes=[name]), scope_spans=[trace_pb2.ScopeSpans(spans=[span])]
    )

    (received,) = spans_of([exported])

    assert received == Span(
        trace_id=_REQUEST,
        span_id="01" * 8,
        parent_id="",
        service="ingest_svc",
        name="commit",
        start_ns=10,
        end_ns=30,
        failed=True,
        attributes={"samples": 7, "names": ["a"]},
        links=(Link(_OTHER, "02" * 8),),
    )


def test_the_command_prints_a_trace_and_what_is_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINMESH_HOME", str(tmp_path))
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    with TraceStore.writing(tmp_path / "traces.sqlite") as store:
        store.add([_span(_REQUEST, "01"), _span(_REQUEST, "02", "01")])
        store.add([_span(_COMMIT, "11", links=(Link(_REQUEST, "02"),))])

    shown = CliRunner().invoke(app, ["trace", _REQUEST[:8].upper()])
    unknown = CliRunner().invoke(app, ["trace", "d" * 32, "--wait", "0"])
    wrong = CliRunner().invoke(app, ["trace", "no-such"])

    assert shown.exit_code == 0
    assert "work-02" in shown.stdout
    assert f"linked trace {_COMMIT}" in shown.stdout
    assert "its span work-11 carries work-02" in shown.stdout.replace("\n", " ")
    assert (unknown.exit_code, wrong.exit_code) == (1, 1)
