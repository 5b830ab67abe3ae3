package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
)

// plotCosts draws curves over a logarithmic axis as SVG.
func plotCosts(title string, curves []curve) []byte {
	const width, height, left, top, right, bottom = 760, 420, 60, 40, 20, 50
	colors := []string{"#1f6f8b", "#c8553d", "#588b3a", "#7a4fa3"}
	xTop, yTop := 1.0, 0.0
	for _, c := range curves {
		xTop, yTop = max(xTop, math.Ceil(math.Log10(slices.Max(c.x)))), max(yTop, slices.Max(c.y))
	}
	yTop *= 1.2
	px := func(x float64) float64 { return left + math.Log10(max(x, 1))/xTop*(width-left-right) }
	py := func(y float64) float64 { return height - bottom - y/yTop*(height-top-bottom) }
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12"><rect width="100%%" height="100%%" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%d" y="22" font-size="15">%s</text>`+"\n", left, html.EscapeString(title))
	for i := range int(xTop) + 1 {
		x := px(math.Pow10(i))
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x, top, height-bottom, x, height-bottom+18, math.Pow10(i))
	}
	for i := range 6 {
		y := yTop * float64(i) / 5
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.2f</text>`+"\n", left, py(y), width-right, left-6, py(y)+4, y)
	}
	for i, c := range curves {
		color, path := colors[i%len(colors)], ""
		for k := range c.x {
			path += fmt.Sprintf("%c%.1f %.1f", "ML"[min(k, 1)], px(c.x[k]), py(c.y[k]))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, px(c.x[k]), py(c.y[k]), color)
		}
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="2"/><text x="%d" y="%d" fill="%s">by %s</text>`+"\n", path, color, left+10+170*i, height-10, color, html.EscapeString(c.name))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
