"""The checks before the browser app: the store of uploads, and the values of calls."""

import io
import json
import os
from types import SimpleNamespace

import pytest

from alight.runtime.errors import InputError
from alight.web import upload_store
from alight.web.calls import Calls, RefusedCallError
from alight.web.sampling import sample_request
from alight.web.upload_store import KEEP_SECONDS, QuotaError, UploadStore, plain_name


class Clock:
    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    return UploadStore(tmp_path, 1_000, clock)


def add(store, visitor="a", content=b"x", name="a.png"):
    return str(store.add(visitor, name, io.BytesIO(content)))


def test_uploads_go_when_they_are_not_used_and_stay_when_they_are(store, clock):
    used, idle = add(store), add(store)
    for _ in range(3):
        clock.now += KEEP_SECONDS * 0.6
        assert store.use(used)
        store.sweep()
    assert not store.use(idle)
    assert [path.name for path in store.folder.iterdir()] == [used.split("/")[-2]]


def test_what_others_leave_in_the_folder_goes_too(store, clock):
    left, fresh = store.folder / "left", store.folder / "fresh"
    for path, age in ((left, KEEP_SECONDS + 1), (fresh, 0)):
        path.write_bytes(b"x")
        os.utime(path, (clock.now - age,) * 2)
    store.sweep()
    assert not left.exists()
    assert fresh.exists()


def test_room_is_limited_for_a_visitor_and_for_all_until_old_files_go(store, clock, monkeypatch):
    monkeypatch.setattr(store, "visitor_bytes", 100)
    monkeypatch.setattr(store, "total_bytes", 150)
    add(store, "a", bytes(60))
    with store.room("a", 40), pytest.raises(QuotaError), store.room("a", 1):
        pass  # what is on its way counts
    with pytest.raises(QuotaError), store.room("b", 91):
        pass
    clock.now += KEEP_SECONDS + 1
    with store.room("b", 91):
        pass


def test_the_number_of_files_is_limited_too(store, monkeypatch):
    monkeypatch.setattr(upload_store, "VISITOR_FILES", 3)
    for _ in range(3):
        add(store)
    with pytest.raises(QuotaError):
        add(store)
    with pytest.raises(QuotaError), store.room("a", 0):
        pass


def test_a_file_is_known_by_its_exact_path_only(store, tmp_path):
    path = add(store)
    other = tmp_path / "other"
    other.write_bytes(b"x")
    foreign = [str(other), path + "/", path.replace("/a.png", "/./a.png"), path.rpartition("/")[0], "", "a\0b"]
    assert store.use(path)
    assert not any(map(store.use, foreign))
    os.remove(path)
    os.symlink(other, path)
    assert not store.use(path)


@pytest.mark.parametrize("name", ["../../a.png", "/etc/a.png", "b\\a.png", "a\x1b\n.png", "", "..", "ä" * 400])
def test_names_of_uploads_are_plain(name):
    plain = plain_name(name)
    assert plain
    assert plain not in (".", "..")
    assert "/" not in plain
    assert plain.isprintable()
    assert len(plain.encode()) <= 255


@pytest.fixture
def calls(store):
    gr = pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")
    inputs = [gr.Number(render=False), gr.Dropdown([("one", 1)], multiselect=True, render=False)]
    inputs.append(gr.File(file_types=[".png"], file_count="multiple", render=False))
    function = SimpleNamespace(api_name="work", inputs=inputs, queue=True, api_visibility="public")
    return Calls(SimpleNamespace(fns={3: function}), store)


def test_a_call_is_passed_on_with_nothing_but_what_was_checked(calls, store):
    file = {"path": add(store), "url": "http://192.0.2.1/", "meta": {}, "is_stream": True, "orig_name": "b.png"}
    call = {"data": [4, [1], [file]], "fn_index": 3, "session_hash": "ab-1", "event_data": {"path": "/etc"}}
    body = json.loads(calls.checked("/gradio_api/queue/join", json.dumps(call).encode()))
    kept = {"path": file["path"], "meta": {"_type": "gradio.FileData"}, "orig_name": "b.png"}
    assert body == {"data": [4, [1], [kept]], "fn_index": 3, "session_hash": "ab-1"}


@pytest.mark.parametrize(
    ("position", "value", "said"),
    [
        (0, True, "a number"),
        (0, 10**400, "bits"),
        (0, "1", "a number"),
        (1, 1, "a list"),
        (1, [True], "choices"),
        (1, [1.0], "choices"),
        (1, [[1]], "choices"),
        (1, [1] * 2000, "at most"),
        (2, "x", "files"),
        (2, [{"path": 3}], "path"),
        (2, [{"path": "/etc/passwd"}], "Choose it again"),
        (2, [{"path": "HTTPS://192.0.2.1/a.png"}], "does not fetch files"),
    ],
)
def test_a_value_of_another_type_is_refused_and_named(calls, position, value, said):
    data = [None, None, None]
    data[position] = value
    with pytest.raises(RefusedCallError) as refusal:
        calls.checked("/gradio_api/call/work", json.dumps({"data": data}).encode())
    assert said in str(refusal.value)
    assert refusal.value.code == 422
    assert [entry["is_valid"] for entry in refusal.value.detail] == [each != position for each in range(3)]


def test_a_seed_of_hundreds_of_digits_is_an_ordinary_mistake():
    with pytest.raises(InputError, match="seed"):
        sample_request([0], 1, 10**400, {}, 10)


@pytest.mark.parametrize(("value", "accepted"), [(True, True), (False, True), (1, False), ("yes", False), ([], False)])
def test_a_checkbox_takes_true_and_false_alone(calls, value, accepted):
    gr = pytest.importorskip("gradio", reason="the browser app needs gradio: pip install 'alight[web]'")
    assert (calls.complaint(gr.Checkbox(render=False), value) == "") is accepted
