// Package record builds, parses, verifies, patches and merges Kafka
// RecordBatch v2 (magic 2), the one data format of Tailrace.
//
// A batch is built once, at the node, and travels unchanged: stored as the entry
// of the write-ahead log, shipped, stored by the hub, fetched by any Kafka client.
//
//	off size field                 in CRC
//	  0    8 baseOffset            no
//	  8    4 batchLength = len-12  no
//	 12    4 partitionLeaderEpoch  no
//	 16    1 magic = 2             no
//	 17    4 crc32c of [21:len)    -
//	 21    2 attributes            yes   0-2 codec, 3 timestamp type, 4 transactional, 5 control
//	 23    4 lastOffsetDelta       yes
//	 27    8 baseTimestamp         yes   ms since 1970
//	 35    8 maxTimestamp          yes
//	 43    8 producerId            yes
//	 51    2 producerEpoch         yes
//	 53    4 baseSequence          yes
//	 57    4 recordCount           yes
//	 61      records (one compressed block if codec != 0)
//
// All integers are big endian; record fields are zigzag varints
// (Kafka protocol guide, "Record Batch"; org.apache.kafka.common.record.DefaultRecordBatch).
package record

// HeaderBytes is the length of a batch without records.
const HeaderBytes = 61

// Header is one record header. Keys may repeat; order is kept.
type Header struct {
	Key   string // from an [Iter] it aliases the batch: strings.Clone to keep it longer
	Value []byte // nil = null
}

// Record is one decoded record. Slices alias the batch (or the decompression
// buffer) they were read from and are valid as long as that is.
type Record struct {
	Offset    int64
	Timestamp int64  // ms since 1970
	Key       []byte // nil = null
	Value     []byte // nil = null
	Headers   []Header
}
