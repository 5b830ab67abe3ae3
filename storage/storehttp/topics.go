package storehttp

import (
	"net/http"
	"time"
)

// TopicInfo describes a topic in answers.
type TopicInfo struct {
	Name             string            `json:"name"`
	Class            string            `json:"class"`
	PartitionCount   int               `json:"partition_count"`
	Records          int64             `json:"records"` // between log start and high watermark, all partitions
	Bytes            int64             `json:"bytes"`
	MinTime          string            `json:"min_time,omitempty"` // of record timestamps, RFC 3339
	MaxTime          string            `json:"max_time,omitempty"`
	RetentionSeconds int64             `json:"retention_seconds"` // 0 = kept for ever
	RetentionBytes   int64             `json:"retention_bytes"`   // 0 = no limit
	Compacted        bool              `json:"compacted,omitempty"`
	Internal         bool              `json:"internal"` // kept by Tailrace itself
	Labels           map[string]string `json:"labels,omitempty"`
	Partitions       []PartitionInfo   `json:"partitions,omitempty"` // only where one topic was asked for
}

// PartitionInfo describes a partition in answers. Offsets are [start, high_watermark).
type PartitionInfo struct {
	Partition     int    `json:"partition"`
	Start         int64  `json:"start"`
	HighWatermark int64  `json:"high_watermark"`
	Bytes         int64  `json:"bytes"`
	MinTime       string `json:"min_time,omitempty"`
	MaxTime       string `json:"max_time,omitempty"`
	// Of a compacted topic.
	Compaction *CompactionInfo `json:"compaction,omitempty"`
}

// CompactionInfo tells how far the compaction of a partition is.
type CompactionInfo struct {
	To         int64 `json:"to"` // offsets below are compacted
	CleanBytes int64 `json:"clean_bytes"`
	DirtyBytes int64 `json:"dirty_bytes"`
	Running    bool  `json:"running"`
	DoneBytes  int64 `json:"done_bytes"` // of the compaction that runs, or ran last
	TotalBytes int64 `json:"total_bytes"`
}

// Describe returns a topic's figures as the API shows them.
func Describe(t Topic, partitions bool) TopicInfo {
	c := t.Config()
	info := TopicInfo{
		Name: t.Name(), Class: c.Class, RetentionSeconds: int64(c.RetentionAge / time.Second),
		RetentionBytes: c.RetentionBytes, Compacted: t.Compacted(), Internal: Internal(t.Name()), Labels: c.Labels,
	}
	var lo, hi int64
	for _, p := range t.Parts() {
		start, hw := p.Start(), p.HighWatermark()
		pi := PartitionInfo{Partition: p.Index(), Start: start, HighWatermark: hw, Bytes: p.Bytes()}
		if hw > start {
			if a, ok := p.StartTime(); ok {
				if pi.MinTime = FormatTime(a); info.MinTime == "" || a < lo {
					lo, info.MinTime = a, pi.MinTime
				}
			}
			if b, ok := p.LastTime(); ok {
				if pi.MaxTime = FormatTime(b); info.MaxTime == "" || b > hi {
					hi, info.MaxTime = b, pi.MaxTime
				}
			}
			info.Records += hw - start
		}
		info.Bytes += pi.Bytes
		info.PartitionCount++
		if partitions {
			if st := p.CompactStatus(); info.Compacted || st.Clean > 0 {
				pi.Compaction = &CompactionInfo{st.To, st.Clean, st.Dirty, st.Running, st.Done, st.Total}
			}
			info.Partitions = append(info.Partitions, pi)
		}
	}
	return info
}

// Internal says whether a topic is kept by Tailrace itself; nobody else writes to it.
func Internal(topic string) bool { return len(topic) > 2 && topic[:2] == "__" }

// FormatTime writes milliseconds since 1970 as the API does: RFC 3339, UTC, milliseconds.
func FormatTime(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

func (h *Handler) topics(w http.ResponseWriter, r *http.Request) {
	list := []TopicInfo{} // [] and not null when there is none
	ts, err := h.log.Topics(r.Context())
	if err != nil {
		WriteError(w, storeError(err))
		return
	}
	for _, t := range ts {
		list = append(list, Describe(t, false))
	}
	writeJSON(w, http.StatusOK, map[string]any{"topics": list})
}

func (h *Handler) topic(w http.ResponseWriter, r *http.Request) {
	if t := h.lookup(w, r); t != nil {
		writeJSON(w, http.StatusOK, Describe(t, true))
	}
}
