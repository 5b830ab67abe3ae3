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
