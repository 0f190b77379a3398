"""Messages as batches: of Kafka, on the mock broker inside its client, and of Redis, on a stand-in and a server."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.core.errors import DataError
from holdfast.core.source import Source
from holdfast.sources import Kafka, Redis


def message(number: int) -> str:
    return json.dumps({"inputs": [float(number), -float(number)], "target": number % 3})


def targets(source: Source) -> list[float]:
    return [row for batch in source.batches() for row in batch.inputs[:, 0].tolist()]  # type: ignore[call-overload, index]


# Kafka -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kafka() -> Iterator[tuple[str, Any]]:
    """The addresses of a broker, and a producer; the broker lives in the producer's process."""
    client = pytest.importorskip("confluent_kafka")
    producer = client.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    servers = next(iter(producer.list_topics(timeout=10).brokers.values()))
    yield f"{servers.host}:{servers.port}", producer
    producer.flush(10)


def produce(producer: Any, topic: str, texts: list[str]) -> None:
    for text in texts:
        producer.produce(topic, text.encode(), partition=0)
    assert producer.flush(10) == 0


def test_a_topic_gives_every_message_once_and_ends_where_it_says_so(kafka: tuple[str, Any]) -> None:
    servers, producer = kafka
    produce(producer, "ended", [*map(message, range(10)), '{"end": true}'])
    source = Kafka("ended", servers, classes=3, batch_size=4, timeout=20.0)
    batches = list(source.batches())
    source.close()
    assert [len(batch.targets) for batch in batches] == [4, 4, 2]
    assert [row for batch in batches for row in batch.targets.tolist()] == [number % 3 for number in range(10)]
    assert source.position()["at"]["0"] >= 10


def test_a_topic_is_read_on_from_a_position(kafka: tuple[str, Any]) -> None:
    servers, producer = kafka
    produce(producer, "resumed", [*map(message, range(9)), '{"end": true}'])
    first = Kafka("resumed", servers, classes=3, batch_size=2, timeout=20.0)
    begun = [row for batch in itertools.islice(first.batches(), 2) for row in batch.inputs[:, 0].tolist()]  # type: ignore[call-overload, index]
    position = json.loads(json.dumps(first.position()))
    first.close()
    second = Kafka("resumed", servers, classes=3, batch_size=2, timeout=20.0)
    second.seek(position)
    assert begun + targets(second) == [float(number) for number in range(9)]
    second.close()


def test_a_message_that_is_none_of_ours_is_named(kafka: tuple[str, Any]) -> None:
    servers, producer = kafka
    produce(producer, "wrong", ['{"input": [1.0], "target": 0}'])
    source = Kafka("wrong", servers, classes=3, timeout=20.0)
    with pytest.raises(DataError, match=r"message 0 of partition 0 of topic 'wrong'.*'inputs' and 'target'"):
        targets(source)
    source.close()


def test_silence_on_a_topic_ends_after_its_timeout(kafka: tuple[str, Any]) -> None:
    servers, producer = kafka
    produce(producer, "silent", [message(0)])
    source = Kafka("silent", servers, classes=3, timeout=0.3, linger=0.1)
    batches = source.batches()
    with pytest.raises(DataError, match=r"no message came to topic 'silent'.*0\.3 seconds"):
        list(batches)
    source.close()


# Redis -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["stand-in", "server"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A client of Redis: one that keeps everything in memory, and one of a server that is started here."""
    redis = pytest.importorskip("redis")
    if request.param == "stand-in":
        yield pytest.importorskip("fakeredis").FakeRedis()
        return
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("there is no redis-server on this machine (apt-get install redis-server)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    server = subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "Ready to accept connections" in line:
                break
        yield redis.Redis(port=port)
    finally:
        server.terminate()
        server.wait(20)


def test_a_stream_of_redis_gives_every_entry_once_and_goes_on_after_the_last(client: Any) -> None:
    for number in range(7):
        client.xadd("rows", {"row": message(number)})
    first = Redis("rows", classes=3, batch_size=2, timeout=20.0, client=client)
    begun = [row for batch in itertools.islice(first.batches(), 2) for row in batch.inputs[:, 0].tolist()]  # type: ignore[call-overload, index]
    position = json.loads(json.dumps(first.position()))
    client.xadd("rows", {"row": message(7)})
    client.xadd("rows", {"row": '{"end": true}'})
    second = Redis("rows", classes=3, batch_size=2, timeout=20.0, client=client)
    second.seek(position)
    assert begun + targets(second) == [float(number) for number in range(8)]


def test_an_entry_without_the_field_is_named(client: Any) -> None:
    client.xadd("rows", {"line": message(0)})
    source = Redis("rows", classes=3, timeout=20.0, client=client)
    with pytest.raises(DataError, match="has no field 'row' but line"):
        targets(source)


def test_no_server_is_an_error_that_says_where_it_was_looked_for() -> None:
    pytest.importorskip("redis")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    source = Redis("rows", url=f"redis://127.0.0.1:{port}/0", classes=3, timeout=2.0)
    with pytest.raises(DataError, match=f"no Redis answers at redis://127.0.0.1:{port}"):
        targets(source)
