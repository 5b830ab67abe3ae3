"""confluent-kafka (librdkafka) against a hub: matrix.py HOST:PORT
Prints "ok STEP" for each step; ends with 1 at the first that fails."""
import sys
import time

import confluent_kafka as ck
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewPartitions, NewTopic

T0 = 1_700_000_000_000
LIMIT = 60
addr = sys.argv[1]
print("versions", ck.version()[0], "librdkafka", ck.libversion()[0])


def ok(step):
    print("ok", step, flush=True)


def consumer(**kv):
    conf = {"bootstrap.servers": addr, "auto.offset.reset": "earliest", "enable.auto.commit": False, "group.id": "python"}
    conf.update({k.replace("_", "."): v for k, v in kv.items()})
    return Consumer(conf)


def read(c, first, n):
    end = time.time() + LIMIT
    want = first
    while want < first + n:
        assert time.time() < end, f"only up to {want}"
        for m in c.consume(500, 0.5):
            assert not m.error(), m.error()
            if want == first + n:
                break
            assert m.offset() == want and m.value() == b"v%d" % want and m.key() == b"k%d" % want, (m.offset(), want)
            assert m.timestamp()[1] == T0 + want * 1000 and m.headers() == [("mqtt.topic", b"wind/7")]
            want += 1


def consume():
    c = consumer()
    assert len(c.list_topics("wind", 60).topics["wind"].partitions) == 2
    ok("list")
    c.assign([TopicPartition("wind", 0, ck.OFFSET_BEGINNING)])
    read(c, 0, 1000)
    ok("beginning")
    c.assign([TopicPartition("wind", 0, 555)])
    read(c, 555, 445)
    ok("offset")
    (o,) = c.offsets_for_times([TopicPartition("wind", 0, T0 + 500_500)], 60)
    assert o.offset == 501, o
    c.assign([o])
    read(c, 501, 10)
    ok("timestamp")
    assert c.get_watermark_offsets(TopicPartition("wind", 0), 60) == (0, 1000)
    c.close()


def producer(codec):
    return Producer({"bootstrap.servers": addr, "enable.idempotence": True, "compression.type": codec, "linger.ms": 5, "message.timeout.ms": 60000})


def send(topic, lo, hi):
    p = producer("none")
    for i in range(lo, hi):
        for part in range(2):
            p.produce(topic, b"v%d" % i, b"k%d" % i, part)
    assert p.flush(60) == 0


def members(seen, n, cs, sizes):
    end = time.time() + LIMIT
    while len(seen) != 2 * n or [len(c.assignment()) for c in cs] != sizes:
        assert time.time() < end, (len(seen), n, [len(c.assignment()) for c in cs])
        for c in cs:
            ms = c.consume(100, 0.1)
            for m in ms:
                assert not m.error(), m.error()
                seen.add((m.partition(), m.offset(), m.value()))
            if ms:
                try:
                    c.commit(asynchronous=False)
                except ck.KafkaException as e:  # a rebalance: they are read again
                    print("commit:", e)


def group(name, strategy):
    topic = "python-" + name
    kv = dict(group_id=topic, session_timeout_ms=30000, heartbeat_interval_ms=500, partition_assignment_strategy=strategy)
    seen = set()
    a, b = consumer(**kv), consumer(**kv)
    send(topic, 0, 100)
    a.subscribe([topic])
    members(seen, 100, [a], [2])
    b.subscribe([topic])
    members(seen, 100, [a, b], [1, 1])
    send(topic, 100, 200)
    members(seen, 200, [a, b], [1, 1])
    a.close()
    members(seen, 200, [b], [2])  # takeover
    send(topic, 200, 300)
    members(seen, 300, [b], [2])
    assert [o.offset for o in b.committed([TopicPartition(topic, 0), TopicPartition(topic, 1)], 60)] == [300, 300]
    b.close()
    ok(name)


def produce():
    for codec in "none", "gzip", "snappy", "lz4", "zstd":
        p = producer(codec)
        for i in range(1001):
            p.produce("python-in-" + codec, b"value number %d" % i, b"k%d" % i, 0)
        assert p.flush(60) == 0
        ok("produce-" + codec)


def result(futures):
    for f in futures.values():
        r = f.result(60)
    return r


def admin():
    a = AdminClient({"bootstrap.servers": addr})
    result(a.create_topics([NewTopic("python-admin", 3, 1, config={"retention.ms": "3600000"})]))
    try:
        result(a.create_topics([NewTopic("python-admin", 3, 1)]))
        raise AssertionError("created twice")
    except ck.KafkaException as e:
        assert e.args[0].code() == ck.KafkaError.TOPIC_ALREADY_EXISTS, e
    result(a.create_partitions([NewPartitions("python-admin", 5)]))
    assert len(a.list_topics("python-admin", 60).topics["python-admin"].partitions) == 5
    conf = result(a.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, "python-admin")]))
    assert conf["retention.ms"].value == "3600000", conf["retention.ms"]
    ok("admin-topics")
    assert "python-group-range" in [g.id for g in a.list_groups(timeout=60)]
    ok("admin-groups")
    result(a.delete_topics(["python-admin"]))
    assert "python-admin" not in a.list_topics(timeout=60).topics
    ok("admin-delete")


consume()
group("group-range", "range")
group("group-cooperative", "cooperative-sticky")
produce()
admin()
