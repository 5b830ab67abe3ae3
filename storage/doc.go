// Package storage keeps topics of partitions of records, and small durable
// state, in commit logs that survive power cuts, full disks and rot.
//
// A [Store] has one commit log per storage class, on tidwall/wal with an
// envelope and CRC of its own around each entry (FORMAT.md). Everything that a
// caller puts into one [Append] becomes durable together, with one write and one
// fsync shared by all appends that waited for it, and its done callback runs
// after that fsync, in order:
//
//	st, err := storage.Open(storage.Config{Dir: dir, Classes: []storage.ClassConfig{{Name: "main"}}})
//	t, err := st.CreateTopic("turbine", storage.TopicConfig{Partitions: 1})
//	a := st.NewAppend("")
//	a.Record(t.Partition(0), ts, key, value, nil)
//	err = st.Commit(ctx, a) // nil: on the disk, at offset a.Base(0)
//	batches, next, err := t.Partition(0).Read(nil, 0, 1<<20)
//
// A partition is a view on its class's log. Nothing beyond the last fsync is
// ever visible. What a store promises, and how, is in DESIGN.md.
//
// A Store, Topic and Partition are safe for concurrent use; an Append and a
// Cursor belong to one goroutine at a time.
package storage
