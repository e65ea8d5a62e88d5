// Command manual writes the man pages of claviger, one for each command. It makes them from docs/cli.md, which has the
// help of every command, and which a test of cmd/claviger compares with the program. So the program itself contains no
// generator. The generator of cobra is not used, because it reads help as Markdown and would join the lines of our
// tables.
//
// SOURCE_DATE_EPOCH is the date of the pages, in seconds; without it they have none.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: manual CLI.MD DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "manual:", err)
		os.Exit(1)
	}
}

// write reads the page and writes the man pages into dir.
func write(page, dir string) error {
	text, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	date := ""
	if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		date = time.Unix(seconds, 0).UTC().Format(time.DateOnly)
	}
	commands, err := parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}
	for i := range commands {
		c := &commands[i]
		file := filepath.Join(dir, c.page()+".1")
		if err := os.WriteFile(file, []byte(c.roff(date, commands)), 0o644); err != nil { //nolint:gosec // public
			return err
		}
	}
	return nil
}
