package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"slices"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is the report as one HTML file that needs no other.
func (r *Report) page() ([]byte, error) {
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, struct {
		*Report
		Plots []Plot
	}{r, r.Plots()})
	return b.Bytes(), err
}

// Plot is a bar chart of one figure of one load.
type Plot struct {
	Title string
	Bars  []Bar
}

// Bar is one bar. Width and Y are in pixels.
type Bar struct {
	Label, Value string
	Width        float64
	Y            int
}

// Dimensions of a plot, in pixels.
const (
	barStep  = 22
	barWidth = 400
)

// Height is the height of the drawing.
func (p Plot) Height() int { return barStep*len(p.Bars) + barStep/2 }

// Plots are the charts of the report: throughput and p99 for each load.
func (r *Report) Plots() (plots []Plot) {
	var seen []string
	for _, m := range r.Measurements {
		if slices.Contains(seen, m.Load) {
			continue
		}
		seen = append(seen, m.Load)
		plots = append(plots,
			r.plot(m.Load, "requests per CPU-second", func(m *Measurement) float64 { return m.PerCPUSecond }),
			r.plot(m.Load, "requests per second", func(m *Measurement) float64 { return m.PerSecond }),
			r.plot(m.Load, "p99 of the latency, ms", func(m *Measurement) float64 { return m.Latency.P99 }))
	}
	return slices.DeleteFunc(plots, func(p Plot) bool { return len(p.Bars) == 0 })
}

func (r *Report) plot(load, what string, figure func(*Measurement) float64) Plot {
	p := Plot{Title: load + ": " + what}
	greatest := 0.0
	for _, m := range r.Measurements {
		if m.Load == load {
			greatest = max(greatest, figure(m))
		}
	}
	for _, m := range r.Measurements {
		if m.Load != load || figure(m) == 0 {
			continue
		}
		label := fmt.Sprintf("%s, %d connections", m.KMS, m.Connections)
		if m.Rate > 0 {
			label = fmt.Sprintf("%s, %.0f/s due", m.KMS, m.Rate)
		}
		p.Bars = append(p.Bars, Bar{label, fmt.Sprintf("%.4g", figure(m)), barWidth * figure(m) / greatest,
			barStep * len(p.Bars)})
	}
	return p
}
