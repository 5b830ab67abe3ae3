// The Java client against a hub: java -cp 'lib/*' Matrix.java HOST:PORT
// Prints "ok STEP" for each step; ends with 1 at the first that fails.
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.*;

public class Matrix {
    static final long T0 = 1_700_000_000_000L, LIMIT = 60_000;
    static String addr;

    static Properties props(Object... kv) {
        Properties p = new Properties();
        p.put("bootstrap.servers", addr);
        p.put("default.api.timeout.ms", "60000");
        for (int i = 0; i < kv.length; i += 2) p.put(kv[i], kv[i + 1]);
        return p;
    }

    static KafkaConsumer<String, String> consumer(Object... kv) {
        Properties p = props(kv);
        p.put("auto.offset.reset", "earliest");
        p.put("enable.auto.commit", "false");
        return new KafkaConsumer<>(p, new StringDeserializer(), new StringDeserializer());
    }

    static KafkaProducer<String, String> producer(String codec) {
        return new KafkaProducer<>(props("compression.type", codec, "acks", "all", "enable.idempotence", "true", "linger.ms", "5"),
            new StringSerializer(), new StringSerializer());
    }

    static void check(boolean ok, String what) {
        if (!ok) throw new IllegalStateException(what);
    }

    static void ok(String step) {
        System.out.println("ok " + step);
    }

    // read takes n records of partition 0 of wind and checks that they are those from first on.
    static void read(KafkaConsumer<String, String> c, long first, int n) {
        long want = first, end = System.currentTimeMillis() + LIMIT;
        while (want < first + n) {
            check(System.currentTimeMillis() < end, "only up to " + want);
            for (ConsumerRecord<String, String> r : c.poll(Duration.ofMillis(500))) {
                check(r.offset() == want && r.value().equals("v" + want) && r.key().equals("k" + want) && r.timestamp() == T0 + want * 1000
                    && new String(r.headers().lastHeader("mqtt.topic").value()).equals("wind/7"), "record " + r + " instead of " + want);
                want++;
            }
        }
    }

    static void consume() {
        try (KafkaConsumer<String, String> c = consumer()) {
            check(c.listTopics().get("wind").size() == 2, "list");
            ok("list");
            TopicPartition p = new TopicPartition("wind", 0);
            c.assign(List.of(p));
            c.seekToBeginning(List.of(p));
            read(c, 0, 1000);
            ok("beginning");
            c.seek(p, 555);
            read(c, 555, 445);
            ok("offset");
            OffsetAndTimestamp o = c.offsetsForTimes(Map.of(p, T0 + 500_500)).get(p);
            check(o.offset() == 501, "offset for time " + o);
            c.seek(p, o.offset());
            read(c, 501, 10);
            ok("timestamp");
        }
    }

    static void send(KafkaProducer<String, String> p, String topic, int from, int to) {
        for (int i = from; i < to; i++)
            for (int part = 0; part < 2; part++) p.send(new ProducerRecord<>(topic, part, "k" + i, "v" + i));
        p.flush();
    }

    // members polls all until seen holds n records of each partition and the assignment has these sizes.
    static void members(Set<String> seen, int n, List<KafkaConsumer<String, String>> cs, int... sizes) {
        long end = System.currentTimeMillis() + LIMIT;
        while (true) {
            boolean done = seen.size() == 2 * n;
            for (int i = 0; i < cs.size(); i++) done &= cs.get(i).assignment().size() == sizes[i];
            if (done) return;
            check(System.currentTimeMillis() < end, seen.size() + " records, not " + 2 * n);
            for (KafkaConsumer<String, String> c : cs) {
                ConsumerRecords<String, String> rs = c.poll(Duration.ofMillis(100));
                for (ConsumerRecord<String, String> r : rs) seen.add(r.partition() + "/" + r.offset() + "=" + r.value());
                try {
                    if (!rs.isEmpty()) c.commitSync();
                } catch (RetriableCommitFailedException | CommitFailedException | org.apache.kafka.common.errors.RebalanceInProgressException e) {
                    // a rebalance: they are read again
                }
            }
        }
    }

    static void group(String name, String assignor) {
        String topic = "java-" + name;
        Set<String> seen = new TreeSet<>();
        Object[] kv = {"group.id", topic, "partition.assignment.strategy", assignor, "session.timeout.ms", "30000", "heartbeat.interval.ms", "500"};
        try (KafkaProducer<String, String> p = producer("none"); KafkaConsumer<String, String> b = consumer(kv)) {
            try (KafkaConsumer<String, String> a = consumer(kv)) {
                send(p, topic, 0, 100);
                a.subscribe(List.of(topic));
                members(seen, 100, List.of(a), 2);
                b.subscribe(List.of(topic));
                members(seen, 100, List.of(a, b), 1, 1);
                send(p, topic, 100, 200);
                members(seen, 200, List.of(a, b), 1, 1);
            }
            members(seen, 200, List.of(b), 2); // takeover
            send(p, topic, 200, 300);
            members(seen, 300, List.of(b), 2);
            b.commitSync();
            Set<TopicPartition> ps = Set.of(new TopicPartition(topic, 0), new TopicPartition(topic, 1));
            for (OffsetAndMetadata o : b.committed(ps).values()) check(o.offset() == 300, "committed " + o);
        }
        ok(name);
    }

    static void produce() throws Exception {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            try (KafkaProducer<String, String> p = producer(codec)) {
                for (int i = 0; i < 1000; i++) p.send(new ProducerRecord<>("java-in-" + codec, 0, "k" + i, "value number " + i));
                p.flush();
                RecordMetadata last = p.send(new ProducerRecord<>("java-in-" + codec, 0, "k1000", "value number 1000")).get(60, TimeUnit.SECONDS);
                check(last.offset() == 1000, "offset " + last.offset());
            }
            ok("produce-" + codec);
        }
        Properties tx = props("transactional.id", "t");
        try (KafkaProducer<String, String> p = new KafkaProducer<>(tx, new StringSerializer(), new StringSerializer())) {
            p.initTransactions();
            check(false, "transactions are taken");
        } catch (org.apache.kafka.common.KafkaException e) {
            String all = "";
            for (Throwable c = e; c != null; c = c.getCause()) all += c.getMessage() + " ";
            check(all.contains("use a cluster"), "refusal: " + all);
            ok("transactions-refused");
        }
    }

    static <T> T get(org.apache.kafka.common.KafkaFuture<T> f) throws Exception {
        return f.get(60, TimeUnit.SECONDS);
    }

    static void admin() throws Exception {
        try (Admin a = Admin.create(props())) {
            check(get(a.describeCluster().nodes()).size() == 1, "nodes");
            NewTopic t = new NewTopic("java-admin", Optional.of(3), Optional.empty()).configs(Map.of("retention.ms", "3600000"));
            get(a.createTopics(List.of(t)).all());
            try {
                get(a.createTopics(List.of(t)).all());
                check(false, "created twice");
            } catch (ExecutionException e) {
                check(e.getCause() instanceof TopicExistsException, e.toString());
            }
            check(get(a.describeTopics(List.of("java-admin")).allTopicNames()).get("java-admin").partitions().size() == 3, "partitions");
            get(a.createPartitions(Map.of("java-admin", NewPartitions.increaseTo(5))).all());
            check(get(a.describeTopics(List.of("java-admin")).allTopicNames()).get("java-admin").partitions().size() == 5, "more partitions");
            ConfigResource cr = new ConfigResource(ConfigResource.Type.TOPIC, "java-admin");
            check(get(a.describeConfigs(List.of(cr)).all()).get(cr).get("retention.ms").value().equals("3600000"), "retention");
            get(a.incrementalAlterConfigs(Map.of(cr, List.of(new AlterConfigOp(new ConfigEntry("retention.ms", "7200000"), AlterConfigOp.OpType.SET)))).all());
            check(get(a.describeConfigs(List.of(cr)).all()).get(cr).get("retention.ms").value().equals("7200000"), "altered retention");
            TopicPartition in = new TopicPartition("java-in-none", 0);
            get(a.deleteRecords(Map.of(in, RecordsToDelete.beforeOffset(500))).all());
            check(get(a.listOffsets(Map.of(in, OffsetSpec.earliest())).all()).get(in).offset() == 500, "start");
            check(get(a.listOffsets(Map.of(in, OffsetSpec.latest())).all()).get(in).offset() == 1001, "end");
            ok("admin-topics");
            boolean listed = false;
            for (GroupListing g : get(a.listGroups().all())) listed |= g.groupId().equals("java-group-range");
            check(listed, "group is not listed");
            check(get(a.describeConsumerGroups(List.of("java-group-range")).all()).get("java-group-range").members().isEmpty(), "members");
            check(get(a.listConsumerGroupOffsets("java-group-range").partitionsToOffsetAndMetadata()).size() == 2, "group offsets");
            get(a.deleteConsumerGroups(List.of("java-group-range")).all());
            ok("admin-groups");
            get(a.deleteTopics(List.of("java-admin")).all());
            check(!get(a.listTopics().names()).contains("java-admin"), "deleted topic is listed");
            ok("admin-delete");
        }
    }

    public static void main(String[] args) throws Exception {
        addr = args[0];
        consume();
        group("group-range", "org.apache.kafka.clients.consumer.RangeAssignor");
        group("group-cooperative", "org.apache.kafka.clients.consumer.CooperativeStickyAssignor");
        produce();
        admin();
        System.exit(0);
    }
}
