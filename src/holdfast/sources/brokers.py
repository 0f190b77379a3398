"""Sources of messages: topics of Kafka and streams of Redis, each message a row."""

from __future__ import annotations

import json
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch

from holdfast.core.errors import ConfigError, DataError, needs_extra
from holdfast.core.experience import Batch
from holdfast.core.ranges import Count, Positive
from holdfast.core.source import Source

SLICE = 0.1
"""Seconds of one wait for messages, after which the source looks whether it was told to stop."""

OnSilence = Literal["raise", "end"]


class Messages(Source):
    """Base of the sources of messages: JSON objects such as `{"inputs": [0.1, 0.2], "target": 1}`.

    A message without values, or with `{"end": true}`, ends the source. Rows are given as soon as `batch_size` of them
    are there, or when nothing came for `linger` seconds.

    Args:
        inputs: name of the list of numbers in a message.
        target: name of the label or number to predict.
        classes: how many class labels there are, 0, 1, 2, ...; null for numbers.
        timeout: seconds without a message before the wait ends.
        on_silence: what that is: an error, or the end.
        linger: seconds without a message after which a smaller batch is given.
        batch_size: rows of a batch.
    """

    live = True
    seekable = True

    def __init__(
        self,
        inputs: str,
        target: str,
        classes: int | None,
        timeout: float,
        on_silence: OnSilence,
        linger: float,
        batch_size: int,
    ) -> None:
        if on_silence not in ("raise", "end"):
            raise ConfigError(f"on_silence is {on_silence!r}. Write raise or end.")
        self.inputs = inputs
        self.target = target
        self.classes = classes
        self.timeout = timeout
        self.on_silence = on_silence
        self.linger = linger
        self.batch_size = batch_size
        self._served = 0
        self._at: dict[str, Any] = {}
        self._halted = threading.Event()

    @abstractmethod
    def messages(self, at: dict[str, Any], most: int, seconds: float) -> list[tuple[dict[str, Any], str, Any]]:
        """At most `most` messages after the place `at`, waiting at most `seconds` for the first.

        Returns:
            For each the place after it (plain values, joined to `at`), a name for error messages, and what it holds.
        """

    def batches(self) -> Iterator[Batch]:
        """Rows in batches.

        Raises:
            DataError: for a message in another format, or nothing for `timeout` seconds.
        """
        rows: list[tuple[Any, Any]] = []
        at = dict(self._at)
        last = time.monotonic()
        over = False
        while not self._halted.is_set():
            arrived = self.messages(at, self.batch_size - len(rows), SLICE)
            for after, name, value in arrived:
                at.update(after)
                if value in (None, "", b"", {}):
                    over = True
                    break
                row = self._row(name, value)
                if row is None:
                    over = True
                    break
                rows.append(row)
            now = time.monotonic()
            last = now if arrived else last
            if rows and (len(rows) >= self.batch_size or over or now - last > self.linger):
                self._served, self._at = self._served + 1, dict(at)
                yield self._batch(rows)
                rows, last = [], time.monotonic()
            if over:
                return
            if now - last > self.timeout:
                if self.on_silence == "end":
                    return
                raise DataError(
                    f"no message came to {self} for {self.timeout:g} seconds. Look whether what writes them still runs,"
                    ' or send {"end": true} when nothing more comes.'
                )

    def _row(self, name: str, value: Any) -> tuple[Any, Any] | None:
        """Inputs and target of a message; None for the one that says that it is the last."""
        try:
            fields = json.loads(value) if isinstance(value, str | bytes) else value
        except ValueError:
            fields = None
        if isinstance(fields, Mapping) and fields.get("end") is True:
            return None
        if not isinstance(fields, Mapping) or self.inputs not in fields or self.target not in fields:
            raise DataError(
                f"{name} is {str(value)[:80]!r}. Send JSON objects with {self.inputs!r} and {self.target!r}, or name"
                " others with inputs= and target=."
            )
        return fields[self.inputs], fields[self.target]

    def _batch(self, rows: list[tuple[Any, Any]]) -> Batch:
        try:
            inputs = torch.from_numpy(np.array([one for one, _ in rows], dtype=np.float32))
            kind = np.float32 if self.classes is None else np.int64
            targets = torch.from_numpy(np.array([one for _, one in rows], dtype=kind))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"messages of {self} do not make a batch: {error}. Send as many numbers in each."
            ) from error
        if self.classes is None and targets.dim() == 1:
            targets = targets.unsqueeze(1)
        if self.classes is not None and not bool(((targets >= 0) & (targets < self.classes)).all()):
            raise DataError(f"a message of {self} has a label outside 0 to {self.classes - 1}. Write more classes.")
        return Batch(inputs, targets)

    def position(self) -> dict[str, Any]:
        """Batches given, and the place of the next message."""
        return {"batches": self._served, "at": dict(self._at)}

    def seek(self, position: Mapping[str, Any]) -> None:
        """Go to a message; what the broker has deleted since then is missing."""
        self._served, self._at = int(position["batches"]), dict(position["at"])

    def halt(self) -> None:
        """Stop waiting for messages."""
        self._halted.set()

    def __repr__(self) -> str:
        return type(self).__name__


class Kafka(Messages):
    """A topic of Kafka. Needs confluent-kafka, which the extra `kafka` brings.

    Every partition of the topic is read from its beginning, or from where a checkpoint left it: places are kept in the
    checkpoint and never committed to the broker, so nothing is skipped when a run dies.

    Args:
        topic: its name.
        servers: addresses of brokers, `host:port` with commas between.
        start: where to begin: at the `earliest` message that is kept, or with what comes from now on, the `latest`.
        settings: further settings of librdkafka, by their own names.
        inputs: name of the list of numbers in a message.
        target: name of the label or number to predict.
        classes: how many class labels there are, 0, 1, 2, ...; null for numbers.
        timeout: seconds without a message before the wait ends.
        on_silence: what that is: an error, or the end.
        linger: seconds without a message after which a smaller batch is given.
        batch_size: rows of a batch.

    Raises:
        DataError: where no broker answers, or there is no such topic.
        ImportError: where confluent-kafka is not installed.
    """

    def __init__(
        self,
        topic: str,
        servers: str = "localhost:9092",
        start: Literal["earliest", "latest"] = "earliest",
        settings: dict[str, Any] | None = None,
        inputs: str = "inputs",
        target: str = "target",
        classes: int | None = None,
        timeout: Positive = 60.0,
        on_silence: OnSilence = "raise",
        linger: Positive = 0.5,
        batch_size: Count = 32,
    ) -> None:
        super().__init__(inputs, target, classes, timeout, on_silence, linger, batch_size)
        if start not in ("earliest", "latest"):
            raise ConfigError(f"start is {start!r}. Write earliest or latest.")
        self.topic = topic
        self.servers = servers
        self.start = start
        self.settings = dict(settings or {})
        self._consumer: Any = None

    def _open(self, at: dict[str, Any]) -> Any:
        try:
            import confluent_kafka as kafka  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise needs_extra("a topic of Kafka", "confluent-kafka", "kafka") from error
        usual = {"group.id": "holdfast", "enable.auto.commit": False, "auto.offset.reset": self.start}
        consumer = kafka.Consumer({"bootstrap.servers": self.servers, **usual, **self.settings})
        try:
            topic = consumer.list_topics(self.topic, timeout=min(self.timeout, 10.0)).topics[self.topic]
        except kafka.KafkaException as error:
            consumer.close()
            raise DataError(
                f"no broker of Kafka answers at {self.servers}: {error.args[0].str()}. Start one."
            ) from error
        if topic.error is not None or not topic.partitions:
            consumer.close()
            raise DataError(f"Kafka at {self.servers} has no topic {self.topic!r}. Make it, or give another topic.")
        begin = kafka.OFFSET_BEGINNING if self.start == "earliest" else kafka.OFFSET_END
        consumer.assign(
            [
                kafka.TopicPartition(self.topic, number, at.get(str(number), begin))
                for number in sorted(topic.partitions)
            ]
        )
        return consumer

    def messages(self, at: dict[str, Any], most: int, seconds: float) -> list[tuple[dict[str, Any], str, Any]]:
        """See `Messages.messages`."""
        if self._consumer is None:
            self._consumer = self._open(at)
        messages = []
        for message in self._consumer.consume(max(1, most), seconds):
            if message.error() is not None:
                if message.error().retriable() or message.error().name() == "_PARTITION_EOF":
                    continue
                raise DataError(f"Kafka reports of topic {self.topic!r}: {message.error().str()}.")
            number, offset = message.partition(), message.offset()
            name = f"message {offset} of partition {number} of topic {self.topic!r}"
            messages.append(({str(number): offset + 1}, name, message.value()))
        return messages

    def close(self) -> None:
        """Leave the broker."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()

    def __repr__(self) -> str:
        return f"topic {self.topic!r} at {self.servers}"


class Redis(Messages):
    """A stream of Redis: entries that XADD appends, each with a field that holds a JSON object. Needs redis-py.

    Places are the entries' identifiers, kept in the checkpoint, so nothing is skipped when a run dies, as long as the
    entries are not trimmed. The extra `redis` brings redis-py.

    Args:
        key: of the stream.
        url: of the server.
        field: of an entry that holds the JSON object.
        start: identifier after which to begin; `0` is the beginning, `$` what comes from now on.
        inputs: name of the list of numbers in the object.
        target: name of the label or number to predict.
        classes: how many class labels there are, 0, 1, 2, ...; null for numbers.
        timeout: seconds without an entry before the wait ends.
        on_silence: what that is: an error, or the end.
        linger: seconds without an entry after which a smaller batch is given.
        batch_size: rows of a batch.
        client: Python only; an object with `xread`, instead of a new connection to `url`.

    Raises:
        DataError: where no server answers.
        ImportError: where redis-py is not installed.
    """

    def __init__(
        self,
        key: str,
        url: str = "redis://localhost:6379/0",
        field: str = "row",
        start: str = "0",
        inputs: str = "inputs",
        target: str = "target",
        classes: int | None = None,
        timeout: Positive = 60.0,
        on_silence: OnSilence = "raise",
        linger: Positive = 0.5,
        batch_size: Count = 32,
        client: Any = None,
    ) -> None:
        super().__init__(inputs, target, classes, timeout, on_silence, linger, batch_size)
        self.key = key
        self.url = url
        self.field = field
        self.start = start
        self._client = client

    def messages(self, at: dict[str, Any], most: int, seconds: float) -> list[tuple[dict[str, Any], str, Any]]:
        """See `Messages.messages`."""
        try:
            import redis  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise needs_extra("a stream of Redis", "redis", "redis") from error
        if self._client is None:
            self._client = redis.Redis.from_url(self.url, socket_timeout=self.timeout)
        try:
            answer = self._client.xread({self.key: at.get("id", self.start)}, max(1, most), int(1000 * seconds))
        except redis.ConnectionError as error:
            raise DataError(f"no Redis answers at {self.url}: {error}. Start one, or give another url.") from error
        messages = []
        for _, entries in answer or []:
            for identifier, fields in entries:
                entry = identifier.decode() if isinstance(identifier, bytes) else identifier
                plain = {key.decode() if isinstance(key, bytes) else key: value for key, value in fields.items()}
                name = f"entry {entry} of stream {self.key!r}"
                if self.field not in plain and "end" not in plain:
                    raise DataError(f"{name} has no field {self.field!r} but {', '.join(plain)}. Name it with field=.")
                messages.append(({"id": entry}, name, plain.get(self.field)))
        return messages

    def close(self) -> None:
        """Leave the server."""
        client, self._client = self._client, None
        if client is not None and hasattr(client, "close"):
            client.close()

    def __repr__(self) -> str:
        return f"stream {self.key!r} at {self.url}"
