package bench

import (
	"encoding/xml"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"claviger/test/hadoop"
)

// bar is one bar of a plot, of parts from left to right.
type bar struct {
	label string
	parts []float64
	value string // shown behind the bar
}

// Dimensions of a plot, in pixels.
const (
	plotWidth, labelWidth, valueWidth = 860, 330, 150
	barHeight, barGap, headHeight     = 16, 8, 34
	legendHeight                      = 18
)

// plotColours are the colours of the parts of a bar, which people with colour blindness can tell apart.
var plotColours = []string{"#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#f0e442",
	"#332288", "#88ccee", "#44aa99", "#117733", "#ddcc77", "#882255"}

// plot draws bars as SVG. legend names the parts of each bar; it is empty if a bar has one part.
func plot(title string, legend []string, bars []bar) string {
	greatest := 0.0
	for _, b := range bars {
		greatest = max(greatest, sum(b.parts))
	}
	rows := (len(legend) + 1) / 2
	height := headHeight + len(bars)*(barHeight+barGap) + rows*legendHeight + barGap
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" `+
		`role="img" font-family="sans-serif" font-size="12"><title>%s</title>`+"\n", plotWidth, height,
		html.EscapeString(title))
	fmt.Fprintf(&s, `<rect width="%d" height="%d" fill="#ffffff"/><text x="8" y="20" font-size="14">%s</text>`+"\n",
		plotWidth, height, html.EscapeString(title))
	y := headHeight
	for _, b := range bars {
		fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`, labelWidth-8, y+barHeight-4,
			html.EscapeString(b.label))
		x := float64(labelWidth)
		for i, part := range b.parts {
			width := part / greatest * (plotWidth - labelWidth - valueWidth)
			fmt.Fprintf(&s, `<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>`, x, y, width, barHeight,
				plotColours[i%len(plotColours)])
			x += width
		}
		fmt.Fprintf(&s, `<text x="%.1f" y="%d">%s</text>`+"\n", x+6, y+barHeight-4, html.EscapeString(b.value))
		y += barHeight + barGap
	}
	for i, name := range legend {
		x, top := 8+i%2*(plotWidth/2), y+i/2*legendHeight
		fmt.Fprintf(&s, `<rect x="%d" y="%d" width="10" height="10" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", x,
			top, plotColours[i%len(plotColours)], x+16, top+10, html.EscapeString(name))
	}
	return s.String() + "</svg>\n"
}

func sum(parts []float64) (total float64) {
	for _, p := range parts {
		total += p
	}
	return total
}

// writePlot writes a plot into docs/img.
func writePlot(t *testing.T, name, svg string) {
	t.Helper()
	dir := filepath.Join(hadoop.Root(), "docs", "img")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // pages
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(svg), 0o644); err != nil { //nolint:gosec // a picture
		t.Fatal(err)
	}
}

func TestPlot(t *testing.T) {
	svg := plot(`"a" & <b>`, []string{"one", "two"}, []bar{{"half", []float64{1, 1}, "2 ms"},
		{"whole", []float64{4}, "4 ms"}})
	var doc struct {
		Title string `xml:"title"`
		Rects []struct {
			Width float64 `xml:"width,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(svg), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Title != `"a" & <b>` || len(doc.Rects) != 1+3+2 || doc.Rects[1].Width*4 != doc.Rects[3].Width {
		t.Errorf("%+v", doc)
	}
}
