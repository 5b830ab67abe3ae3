package wire

import "strings"

// SketchSuffix names the topic in which a node gives a coarse account of another.
const SketchSuffix = ".sketch"

// SketchOf is the topic that a topic is the sketch of, if its name says so.
func SketchOf(topic string) (base string, ok bool) {
	base, ok = strings.CutSuffix(topic, SketchSuffix)
	return base, ok && base != ""
}
