package pages

import (
	"regexp"
	"strings"

	"claviger/docs"
)

// cure is a section of the runbook.
type cure struct {
	Page, Section string
	// Steps are the items of the section: "It means", "Look first", "Do first".
	Steps []cureStep
}

type cureStep struct{ Title, Text string }

// cures are the sections of the runbook by the names of checks.
var cures = readCures(docs.Runbook)

var (
	cureHeading = regexp.MustCompile("(?m)^### (`.*`)\n")
	cureLink    = regexp.MustCompile(`\[([^]]*)\]\(([^)]*)\)`)
)

// readCures reads the sections whose headings are names of checks.
func readCures(page string) map[string]*cure {
	all := map[string]*cure{}
	at := cureHeading.FindAllStringSubmatchIndex(page, -1)
	for i, m := range at {
		end := len(page)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		text := page[m[1]:end]
		if j := strings.Index(text, "\n## "); j >= 0 {
			text = text[:j]
		}
		heading := page[m[2]:m[3]]
		c := &cure{Page: "docs/runbook.md", Section: strings.ReplaceAll(heading, "`", ""), Steps: cureSteps(text)}
		for name := range strings.SplitSeq(heading, ", ") {
			if name = strings.Trim(name, "`"); all[name] == nil { // the first sections are those of a KMS
				all[name] = c
			}
		}
	}
	return all
}

// cureSteps reads the items of a section, without the marks of Markdown.
func cureSteps(text string) (steps []cureStep) {
	for _, item := range strings.Split(text, "\n- ") {
		title, rest, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(item), "- "), ":** ")
		if !ok {
			continue
		}
		rest = cureLink.ReplaceAllStringFunc(strings.Join(strings.Fields(rest), " "), func(link string) string {
			m := cureLink.FindStringSubmatch(link)
			if strings.Contains(m[1], ".md") { // the text is the page's name
				return "docs/" + m[2]
			}
			return m[1] + " (docs/" + m[2] + ")"
		})
		steps = append(steps, cureStep{strings.TrimPrefix(title, "**"), strings.ReplaceAll(rest, "`", "")})
	}
	return steps
}

// cureOf returns the section about a check; nil if there is none.
func cureOf(check string) *cure {
	if strings.HasPrefix(check, "source ") {
		check = "source URI"
	}
	return cures[check]
}
