package linktest

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// AppendBatch appends a Kafka RecordBatch v2 of n records at base, whose records part is
// the payload as given: whole and with a good CRC as far as the uplink looks.
func AppendBatch(dst []byte, base int64, n int, ts int64, payload []byte) []byte {
	at := len(dst)
	var h [61]byte
	binary.BigEndian.PutUint64(h[0:], uint64(base))
	binary.BigEndian.PutUint32(h[8:], uint32(61+len(payload)-12))
	h[16] = 2
	binary.BigEndian.PutUint32(h[23:], uint32(n-1))
	binary.BigEndian.PutUint64(h[27:], uint64(ts))
	binary.BigEndian.PutUint64(h[35:], uint64(ts))
	binary.BigEndian.PutUint64(h[43:], ^uint64(0))
	binary.BigEndian.PutUint16(h[51:], ^uint16(0))
	binary.BigEndian.PutUint32(h[53:], ^uint32(0))
	binary.BigEndian.PutUint32(h[57:], uint32(n))
	dst = append(dst, h[:]...)
	dst = append(dst, payload...)
	binary.BigEndian.PutUint32(dst[at+17:], crc32.Checksum(dst[at+21:], castagnoli))
	return dst
}

// Record is one of a batch that AppendRecords makes.
type Record struct {
	Key, Value []byte
	Millis     int64 // its time
	Headers    [][2]string
}

// AppendRecords appends a Kafka RecordBatch v2 of these records at base.
func AppendRecords(dst []byte, base int64, records []Record) []byte {
	var payload, b []byte
	text := func(s []byte) { b = append(binary.AppendVarint(b, int64(len(s))), s...) }
	for i, r := range records {
		b = append(b[:0], 0) // attributes
		b = binary.AppendVarint(b, r.Millis-records[0].Millis)
		b = binary.AppendVarint(b, int64(i))
		text(r.Key)
		text(r.Value)
		b = binary.AppendVarint(b, int64(len(r.Headers)))
		for _, h := range r.Headers {
			text([]byte(h[0]))
			text([]byte(h[1]))
		}
		payload = append(binary.AppendVarint(payload, int64(len(b))), b...)
	}
	return AppendBatch(dst, base, len(records), records[0].Millis, payload)
}
