package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// A command is a section of docs/cli.md.
type command struct {
	name        string // claviger hsm init
	short       string
	description []paragraph
	exit        []paragraph // those that begin with "Exit status"
	usage       []string
	examples    []string
	flags       []entry
	commands    []entry
}

// A paragraph is a text, or a table or an example whose lines stay as they are.
type paragraph struct {
	lines []string
	table bool
}

// An entry is a flag or a subcommand, with its text.
type entry struct{ name, text string }

var section = regexp.MustCompile("(?s)\n## (claviger[^\n]*)\n\n([^\n]+)\\.\n\n```\n(.*?)```\n")

// parse reads docs/cli.md.
func parse(page string) (commands []command, err error) {
	for _, m := range section.FindAllStringSubmatch(page, -1) {
		c := command{name: m[1], short: m[2]}
		if err := c.parseHelp(strings.TrimRight(m[3], "\n")); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		commands = append(commands, c)
	}
	if n := strings.Count(page, "\n## "); n != len(commands) || n == 0 {
		return nil, fmt.Errorf("%d of %d sections are the help of a command", len(commands), n)
	}
	return commands, nil
}

// parseHelp reads the help text of a command: description, usage, examples, subcommands and flags.
func (c *command) parseHelp(help string) error {
	long, rest, ok := strings.Cut(help, "\n\nUsage:\n")
	if !ok {
		return errors.New("the help has no usage")
	}
	for _, p := range paragraphs(long) {
		if !p.table && strings.HasPrefix(p.lines[0], "Exit status") {
			c.exit = append(c.exit, p)
		} else {
			c.description = append(c.description, p)
		}
	}
	parts := strings.Split(rest, "\n\n")
	for _, line := range strings.Split(parts[0], "\n") {
		if text, ok := strings.CutPrefix(line, "      "); ok && len(c.usage) > 0 {
			c.usage[len(c.usage)-1] += " " + text
		} else {
			c.usage = append(c.usage, strings.TrimSpace(line))
		}
	}
	var err error
	for _, part := range parts[1:] {
		title, lines, _ := strings.Cut(part, "\n")
		switch {
		case title == "Examples:":
			c.examples = strings.Split(lines, "\n")
		case title == "Available Commands:":
			c.commands, err = entries(lines, subcommand)
		case title == "Flags:":
			c.flags, err = entries(lines, flag)
		case strings.HasPrefix(title, `Use "`): // the pages of the subcommands have that help
		default:
			return fmt.Errorf("unknown part %q", title)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// paragraphs divides a help text. Lines that begin with a blank are tables, as in package terminal.
func paragraphs(text string) (all []paragraph) {
	var last *paragraph
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			last = nil
			continue
		}
		table := line[0] == ' '
		if last == nil || last.table != table {
			all = append(all, paragraph{table: table})
			last = &all[len(all)-1]
		}
		last.lines = append(last.lines, line)
	}
	return all
}

var (
	subcommand = regexp.MustCompile(`^  (\S+) +(\S.*)$`)
	flag       = regexp.MustCompile(`^ {2,6}(-\S.*?)  +(\S.*)$`)
)

// entries reads a list. A line that matches begin begins an entry, and the other lines continue its text.
func entries(lines string, begin *regexp.Regexp) (all []entry, err error) {
	for line := range strings.SplitSeq(lines, "\n") {
		if m := begin.FindStringSubmatch(line); m != nil {
			all = append(all, entry{m[1], m[2]})
		} else if text := strings.TrimSpace(line); len(all) > 0 && strings.HasPrefix(line, "        ") {
			all[len(all)-1].text += " " + text
		} else {
			return nil, fmt.Errorf("no entry: %q", line)
		}
	}
	return all, nil
}
