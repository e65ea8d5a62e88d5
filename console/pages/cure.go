package pages

import (
	"path"
	"regexp"
	"strings"
	"sync"

	"claviger/docs"
)

// cure is a section of a runbook.
type cure struct {
	Page, Section string
	// Steps are the items of the section: "It means", "Look first", "Do first".
	Steps []cureStep
}

type cureStep struct{ Title, Text string }

// cures returns the sections of the runbooks by the names of checks. The pages of a KMS come before that of a Key
// Trustee Server, whose checks may have the same names. The first call reads the pages, since each command of the
// program has this package, and only a console needs the sections.
var cures = sync.OnceValue(func() map[string]*cure {
	return readCures("hsm", "stores", "sources", "clients", "trustee")
})

var (
	cureHeading = regexp.MustCompile("(?m)^## (`.*`)\n")
	cureLink    = regexp.MustCompile(`\[([^]]*)\]\(([^)]*)\)`)
)

// readCures reads the sections of pages whose headings are names of checks.
func readCures(pages ...string) map[string]*cure {
	all := map[string]*cure{}
	for _, name := range pages {
		page, err := docs.Runbooks.ReadFile("runbooks/" + name + ".md")
		if err != nil {
			panic(err) // the page is in the program
		}
		addCures(all, "docs/runbooks/"+name+".md", string(page))
	}
	return all
}

// addCures adds the sections of a page.
func addCures(all map[string]*cure, file, page string) {
	at := cureHeading.FindAllStringSubmatchIndex(page, -1)
	for i, m := range at {
		end := len(page)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		heading := page[m[2]:m[3]]
		c := &cure{Page: file, Section: strings.ReplaceAll(heading, "`", ""), Steps: cureSteps(page[m[1]:end])}
		for name := range strings.SplitSeq(heading, ", ") {
			if name = strings.Trim(name, "`"); all[name] == nil {
				all[name] = c
			}
		}
	}
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
			page := path.Join("docs/runbooks", m[2])
			if strings.Contains(m[1], ".md") { // the text is the page's name
				return page
			}
			return m[1] + " (" + page + ")"
		})
		steps = append(steps, cureStep{strings.TrimPrefix(title, "**"),
			strings.NewReplacer("`", "", "**", "").Replace(rest)})
	}
	return steps
}

// cureOf returns the section about a check; nil if there is none.
func cureOf(check string) *cure {
	if strings.HasPrefix(check, "source ") {
		check = "source URI"
	}
	return cures()[check]
}
