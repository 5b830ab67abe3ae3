package kafka_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"tailrace/uplink/hub/kafka"
)

// fill gives every field of a request something: lists get two elements.
func fill(v reflect.Value, n int) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() && v.Type().Field(i).Name != "Version" && v.Type() != reflect.TypeOf(kmsg.Tags{}) {
				fill(f, n+i)
			}
		}
	case reflect.Slice:
		s := reflect.MakeSlice(v.Type(), 2, 2)
		for i := range 2 {
			fill(s.Index(i), n+i)
		}
		v.Set(s)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n+i)
		}
	case reflect.String:
		v.SetString("text\xff\xff\xff\x7f")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(n%2 - 2))
	case reflect.Uint8:
		v.SetUint(uint64(0x80 + n))
	}
}

// TestLayoutsAreKmsgs: what kmsg writes in every flexible version we serve has our layout,
// to the last byte, and cut anywhere it has not.
func TestLayoutsAreKmsgs(t *testing.T) {
	checked := 0
	for key, vs := range kafka.Versions() {
		for v := vs[0]; v <= vs[1]; v++ {
			for _, full := range []bool{false, true} {
				req := kmsg.RequestForKey(key)
				if full {
					fill(reflect.ValueOf(req).Elem(), 1)
				}
				if f, ok := req.(*kmsg.FetchRequest); ok { // what no consumer sends
					f.ReplicaState = kmsg.NewFetchRequestReplicaState()
				}
				req.SetVersion(v)
				if !req.IsFlexible() || key == 0 {
					continue
				}
				checked++
				b := req.AppendTo(nil)
				if rest, ok := kafka.SoundFlexible(key, v, b); !ok || len(rest) != 0 {
					t.Errorf("%s v%d (full %v): refused %v, %d of %d bytes left", kmsg.NameForKey(key), v, full, !ok, len(rest), len(b))
				}
				for i := range b {
					if _, ok := kafka.SoundFlexible(key, v, b[:i]); ok {
						t.Errorf("%s v%d cut at %d of %d bytes is taken", kmsg.NameForKey(key), v, i, len(b))
						break
					}
				}
			}
		}
	}
	if checked < 70 {
		t.Errorf("only %d", checked)
	}
}

// TestClaimedTagsCostNothing: forty bytes that claim a hundred million tagged fields.
func TestClaimedTagsCostNothing(t *testing.T) {
	start := time.Now()
	for key, vs := range kafka.Versions() {
		req := kmsg.RequestForKey(key)
		req.SetVersion(vs[1])
		if !req.IsFlexible() {
			continue
		}
		h := newHub(t)
		b := frame(req, 1)
		b[len(b)-1] = 0xff // the tags at the end
		b = append(b, 0xff, 0xff, 0x30)
		b[3] += 3
		r := h.raw()
		if _, err := r.nc.Write(b); err != nil {
			t.Fatal(err)
		}
		r.closed(kmsg.NameForKey(key))
		h.stop() // which ends when the connection's goroutine does
	}
	t.Log(time.Since(start))
}
