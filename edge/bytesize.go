package edge

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// ByteSize is a number of bytes, in YAML "512KiB", "4GiB", "2GB" or a plain number.
type ByteSize int64

var units = []struct {
	suffix string
	n      float64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"KB", 1e3}, {"B", 1},
}

// ParseByteSize reads a size.
func ParseByteSize(s string) (ByteSize, error) {
	num, unit := strings.TrimSpace(s), 1.0
	for _, u := range units {
		if rest, ok := strings.CutSuffix(num, u.suffix); ok {
			num, unit = strings.TrimSpace(rest), u.n
			break
		}
	}
	v, err := strconv.ParseFloat(num, 64)
	if err != nil || !(v >= 0) || v*unit > math.MaxInt64/2 {
		return 0, fmt.Errorf("size %q: want a number with B, KiB, MiB, GiB, TiB, kB, MB, GB or TB", s)
	}
	return ByteSize(v * unit), nil
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (b *ByteSize) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: want a size such as 4GiB", n.Line)
	}
	v, err := ParseByteSize(n.Value)
	if err != nil {
		return fmt.Errorf("line %d: %w", n.Line, err)
	}
	*b = v
	return nil
}

// String is the shortest exact form in binary units.
func (b ByteSize) String() string {
	for _, u := range units[:4] {
		if n := int64(u.n); b != 0 && int64(b)%n == 0 {
			return strconv.FormatInt(int64(b)/n, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}
