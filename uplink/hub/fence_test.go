package hub_test

import (
	"strings"
	"testing"

	"tailrace/uplink"
	"tailrace/uplink/hub"
	"tailrace/uplink/wire"
)

// chain makes epochs from letters: "AB" is A and its child B; a leading "-"
// leaves the first one's parent out of the list, as a node may.
func chain(s string) []wire.EpochInfo {
	var out []wire.EpochInfo
	var parent wire.ID
	for i := range s {
		id := wire.ID{s[i]}
		out = append(out, wire.EpochInfo{ID: id, Parent: parent, Number: int32(i + 1)})
		parent = id
	}
	return out
}

func letters(list []wire.EpochInfo) string {
	var b strings.Builder
	for _, e := range list {
		b.WriteByte(e.ID[0])
	}
	return b.String()
}

func TestOnlyTheLogThatTheHubKnowsGoesOn(t *testing.T) {
	for _, c := range []struct {
		name, known string
		named       []wire.EpochInfo
		live, again bool   // another session is live; the operator accepts
		fenced      string // part of the reason; "" = admitted
		adopted     string // epochs known afterwards, "" = as before
	}{
		{"new node", "", chain("A"), false, false, "", "A"},
		{"the same log", "AB", chain("AB"), true, false, "", ""},
		{"the same log, older epochs left out", "AB", chain("AB")[1:], false, false, "", ""},
		{"its tail was lost", "AB", chain("ABC"), false, false, "", "ABC"},
		{"twice, unseen in between", "A", chain("ABC"), false, false, "", "ABC"},
		{"child only, parents left out", "AB", chain("ABC")[2:], false, false, "", "ABC"},
		{"restored backup", "AB", chain("A"), false, false, "older copy", ""},
		{"cloned card", "AB", chain("AX"), false, false, "two copies", ""},
		{"cloned card, parents left out", "AB", chain("AX")[1:], false, false, "two copies", ""},
		{"new disk", "AB", chain("X"), false, false, "", "ABX"},
		{"second machine", "AB", chain("X"), true, false, "two machines", ""},
		{"the replaced disk comes back", "ABX", chain("AB"), false, false, "older copy", ""},
		{"operator accepts a clone", "AB", chain("AX"), false, true, "", "ABX"},
		{"operator cannot accept what is known", "AB", chain("A"), false, true, "older copy", ""},
		{"no epoch", "A", nil, false, false, "no epoch", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			why, adopt := hub.Decide(chain(c.known), c.named, c.live, c.again)
			if c.fenced == "" && why != "" || c.fenced != "" && !strings.Contains(why, c.fenced) {
				t.Errorf("fenced: %q, want %q", why, c.fenced)
			}
			if got := letters(adopt); got != c.adopted {
				t.Errorf("adopted %q, want %q", got, c.adopted)
			}
		})
	}
}

func TestShorterLogOfTheSameEpochIsFenced(t *testing.T) {
	inv := wire.Inventory{Epochs: chain("AB"), Partitions: []wire.PartitionInfo{{Topic: "t", Next: 50}}}
	held := func(epoch byte, topic string, to int64) []hub.Progress {
		return []hub.Progress{{Epoch: wire.ID{epoch}, Topic: topic, Held: uplink.RangeSet{{From: 0, To: to}}}}
	}
	for _, c := range []struct {
		name     string
		progress []hub.Progress
		fenced   bool
	}{
		{"behind", held('B', "t", 40), false},
		{"level", held('B', "t", 50), false},
		{"ahead", held('B', "t", 51), true},
		{"ahead in a former epoch", held('A', "t", 90), false},
		{"a topic the node has no more", held('B', "gone", 1), true},
	} {
		if why := hub.RolledBack(inv, c.progress); (why != "") != c.fenced {
			t.Errorf("%s: %q", c.name, why)
		}
	}
}
