import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.WindowStore;

// Streams HOST:PORT STATEDIR: a stateful application. Topic "readings" holds numbers from 0
// to 62 by turbine; for each turbine and window of ten seconds it keeps which numbers
// came, as bits, in a store that is backed by a compacted topic, and writes them to
// "windows". It goes by a repartition topic. Setting a bit twice changes nothing, so at
// least once is good enough.
public class Streams {
	public static void main(String[] args) throws Exception {
		Properties c = new Properties();
		c.put(StreamsConfig.APPLICATION_ID_CONFIG, "bits");
		c.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
		c.put(StreamsConfig.STATE_DIR_CONFIG, args[1]);
		c.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.AT_LEAST_ONCE);
		c.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 200);
		c.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
		c.put("auto.offset.reset", "earliest");
		c.put("session.timeout.ms", 6000);
		c.put("heartbeat.interval.ms", 500);
		StreamsBuilder b = new StreamsBuilder();
		b.stream("readings", Consumed.with(Serdes.String(), Serdes.String()))
			.selectKey((k, v) -> k.toUpperCase())
			.groupByKey(Grouped.with(Serdes.String(), Serdes.String()))
			.windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofSeconds(10), Duration.ofDays(36500)))
			.aggregate(() -> 0L, (k, v, bits) -> bits | 1L << Integer.parseInt(v),
				Materialized.<String, Long, WindowStore<Bytes, byte[]>>as("bits").withKeySerde(Serdes.String()).withValueSerde(Serdes.Long()).withRetention(Duration.ofDays(36501)))
			.toStream((w, v) -> w.key() + "@" + w.window().start())
			.mapValues(v -> Long.toString(v))
			.to("windows", Produced.with(Serdes.String(), Serdes.String()));
		KafkaStreams s = new KafkaStreams(b.build(), c);
		s.setUncaughtExceptionHandler(e -> {
			e.printStackTrace();
			System.exit(1);
			return null;
		});
		s.start();
		Thread.currentThread().join();
	}
}
