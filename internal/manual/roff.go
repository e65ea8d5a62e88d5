package main

import (
	"fmt"
	"strings"
)

// page returns the name of the command's man page, without the section.
func (c *command) page() string { return strings.ReplaceAll(c.name, " ", "-") }

// files has the entries of a page's section FILES, by command.
var files = map[string][]entry{
	"claviger kms": {
		{"/etc/claviger", "configuration: kms-site.xml, kms-acls.xml, core-site.xml, ssl-server.xml"},
		{"/var/lib/claviger", "state: keystore file, metastore, PIN"},
		{"/var/lib/kms-keytrustee", "identity of a Key Trustee KMS"},
		{"/var/log/claviger", "audit logs"},
	},
	"claviger trustee serve": {{"/var/lib/keytrustee/.keytrustee", "identity, certificate and store"}},
	"claviger keyhsm start":  {{"/etc/keytrustee-keyhsm", "settings, certificates and trusted certificates"}},
}

// roff returns the man page of the command. all are the commands that have a page.
func (c *command) roff(date string, all []command) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH %s 1 \"%s\" claviger \"claviger manual\"\n", escape(strings.ToUpper(c.page())), date)
	b.WriteString(".nh\n.ad l\n")
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n", escape(c.page()), escape(c.short))
	b.WriteString(".SH SYNOPSIS\n")
	for i, usage := range c.usage {
		if i > 0 {
			b.WriteString(".br\n")
		}
		fmt.Fprintf(&b, "\\fB%s\\fR%s\n", escape(c.name), escape(strings.TrimPrefix(usage, c.name)))
	}
	writeParagraphs(&b, "DESCRIPTION", c.description)
	writeEntries(&b, "COMMANDS", c.commands)
	writeEntries(&b, "OPTIONS", c.flags)
	writeParagraphs(&b, "EXIT STATUS", c.exit)
	writeEntries(&b, "FILES", files[c.name])
	if len(c.examples) > 0 {
		writeParagraphs(&b, "EXAMPLES", []paragraph{{c.examples, true}})
	}
	b.WriteString(".SH SEE ALSO\n")
	for _, other := range c.related(all) {
		fmt.Fprintf(&b, "\\fB%s\\fR(1),\n", escape(other))
	}
	b.WriteString("/usr/share/doc/claviger/docs\n")
	return b.String()
}

// related returns the pages of the parent command and of the subcommands.
func (c *command) related(all []command) (pages []string) {
	for i := range all {
		o := &all[i]
		if parentName(o.name) == c.name || parentName(c.name) == o.name {
			pages = append(pages, o.page())
		}
	}
	return pages
}

// parentName returns the name without its last word.
func parentName(name string) string {
	if i := strings.LastIndexByte(name, ' '); i >= 0 {
		return name[:i]
	}
	return ""
}

func writeParagraphs(b *strings.Builder, title string, all []paragraph) {
	if len(all) == 0 {
		return
	}
	b.WriteString(".SH " + title + "\n")
	for i, p := range all {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if p.table {
			b.WriteString(".nf\n")
		}
		for _, line := range p.lines {
			b.WriteString(escape(line) + "\n")
		}
		if p.table {
			b.WriteString(".fi\n")
		}
	}
}

func writeEntries(b *strings.Builder, title string, all []entry) {
	if len(all) == 0 {
		return
	}
	b.WriteString(".SH " + title + "\n")
	for _, e := range all {
		fmt.Fprintf(b, ".TP\n\\fB%s\\fR\n%s\n", escape(e.name), escape(e.text))
	}
}

var special = strings.NewReplacer(`\`, `\e`, `-`, `\-`)

// escape returns a line that roff shows as it is.
func escape(line string) string {
	line = special.Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}
