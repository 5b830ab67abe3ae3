package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"tailrace/storage"
)

// bigLog opens a store of 100 MB and one of 10 GB (2 GB in the short form), and looks
// records up by time in both. The records come a minute apart
// with pauses of hours, so that time does not follow from the offset. The larger may
// take twice as long, or 100 ms.
func bigLog(ctx context.Context, e *env) ([]row, error) {
	const small = 100 << 20
	big := int64(10 << 30)
	if e.short {
		big = 2 << 30
	}
	var open, lookup [2]time.Duration
	var memory [2]int64
	for i, size := range []int64{small, big} {
		dir, err := e.sub("log")
		if err != nil {
			return nil, err
		}
		m, err := measureLog(ctx, dir, size)
		os.RemoveAll(dir)
		if err != nil {
			return nil, err
		}
		open[i], lookup[i], memory[i] = m.open, m.lookup, m.memory
	}
	flat := func(v [2]time.Duration) bool { return v[1] <= max(2*v[0], 100*time.Millisecond) }
	text := func(v [2]time.Duration) string {
		return fmt.Sprintf("%v, %v", v[1].Round(10*time.Microsecond), v[0].Round(10*time.Microsecond))
	}
	of := fmt.Sprintf("%d GB against 100 MB", big>>30)
	cmd := "go run ./cmd/bars -only big-log"
	perGB := float64(memory[1]-memory[0]) / float64(big-small) * 1e9
	return []row{
		{"open a log, " + of, "within 2x or 100 ms", text(open), flat(open), cmd},
		{"look up by time, just opened, " + of, "within 2x or 100 ms", text(lookup), flat(lookup), cmd},
		{"memory of an open log per GB, 8 topics", "at most 1 MB", fmt.Sprintf("%.2f MB", perGB/1e6), perGB <= 1e6, cmd},
	}, nil
}

type logFigures struct {
	open, lookup time.Duration
	memory       int64 // what an open store holds
}

// measureLog writes a log of size bytes, in segments as a node has them (1 MiB, with a
// budget from 1 GiB on 4 MiB), and returns the median of five opens and of 50 lookups in a
// store just opened.
func measureLog(ctx context.Context, dir string, size int64) (logFigures, error) {
	conf := storage.Config{Dir: filepath.Join(dir, "data"), NodeID: "node-1", RetentionInterval: -1, Classes: []storage.ClassConfig{{Name: "main"}}}
	if size >= 1<<30 {
		conf.Classes[0].SegmentBytes = 4 << 20
	}
	s, err := storage.Open(conf)
	if err != nil {
		return logFigures{}, err
	}
	const topics = 8
	var parts [topics]*storage.Partition
	for i := range parts {
		t, err := s.CreateTopic(fmt.Sprintf("wind-%d", i), storage.TopicConfig{})
		if err != nil {
			return logFigures{}, err
		}
		parts[i] = t.Partition(0)
	}
	value := make([]byte, 64<<10)
	at := func(n int64) int64 { return 1_700_000_000_000 + n*60_000 + n/1000*7_200_000 }
	var n int64
	for written := int64(0); written < size; {
		a := s.NewAppend("")
		for range 8 { // half a segment
			copy(value, fmt.Sprint(n))
			if err := a.Record(parts[n%topics], at(n), nil, value, nil); err != nil {
				return logFigures{}, err
			}
			n++
			written += int64(len(value))
		}
		if err := s.Commit(ctx, a); err != nil {
			return logFigures{}, err
		}
	}
	if err := s.Close(); err != nil {
		return logFigures{}, err
	}
	var m logFigures
	var opens, lookups []time.Duration
	heap := func() int64 {
		var st runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&st)
		return int64(st.HeapAlloc)
	}
	s = nil
	before := heap()
	for range 5 {
		start := time.Now()
		if s, err = storage.Open(conf); err != nil {
			return m, err
		}
		opens = append(opens, time.Since(start))
		if len(opens) == 1 {
			m.memory = heap() - before
		}
		for i := range int64(10) { // places all over the log
			want := n / 10 * i
			want += topics - want%topics
			t, ok := s.Topic("wind-0")
			if !ok {
				return m, fmt.Errorf("the topic is gone")
			}
			start := time.Now()
			off, ts, ok, err := t.Partition(0).OffsetForTime(at(want))
			lookups = append(lookups, time.Since(start))
			if err != nil || !ok || off != want/topics || ts != at(want) {
				s.Close()
				return m, fmt.Errorf("lookup of record %d: offset %d, time %d, found %v, %v", want, off, ts, ok, err)
			}
		}
		if err := s.Close(); err != nil {
			return m, err
		}
	}
	slices.Sort(opens)
	slices.Sort(lookups)
	m.open, m.lookup = opens[len(opens)/2], lookups[len(lookups)/2]
	return m, nil
}
