package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/kmswire"
	"claviger/provider/kmsclient"
	"claviger/terminal"
)

func newKeyDescribe() *cobra.Command {
	return keyCommand("describe NAME --provider URI", "Show everything about a key except its material",
		cobra.ExactArgs(1),
		func(ctx context.Context, _ *cobra.Command, kms *kmsclient.Provider, out *terminal.Output,
			args []string) error {
			keys, err := kms.DescribeAny(ctx, args[0])
			if err != nil {
				return err
			}
			return out.Write(keys, func(w io.Writer) {
				for i, k := range keys {
					if i > 0 {
						fmt.Fprintln(w)
					}
					describeKey(w, k)
				}
			})
		})
}

// describeKey writes a key as text.
func describeKey(w io.Writer, k kmswire.KeyDescription) {
	fmt.Fprintf(w, "key\t%s\n", claviger.Printable(k.Name))
	state := "live"
	if k.Deleted != 0 {
		state = "deleted " + clock(k.Deleted)
	}
	fmt.Fprintf(w, "state\t%s\nprovider\t%s\ncipher\t%s\nlength\t%d\ncreated\t%s\n", state, k.Provider,
		claviger.Printable(k.Cipher), k.Length, clock(k.Created))
	if k.Description == nil {
		fmt.Fprintln(w, "description\tnone")
	} else {
		fmt.Fprintf(w, "description\t%q\n", *k.Description)
	}
	for _, name := range slices.Sorted(maps.Keys(k.Attributes)) {
		fmt.Fprintf(w, "attribute\t%s = %q\n", claviger.Printable(name), k.Attributes[name])
	}
	if len(k.Versions) == 0 {
		fmt.Fprintln(w, "versions\tthis KMS shows them only with their material")
		return
	}
	fmt.Fprintln(w, "\nVERSION\tCREATED\tLAST USED\tCKA_LABEL\tCKA_ID")
	for _, v := range k.Versions {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", claviger.Printable(v.Name), clockOr(v.Created, "not known"),
			lastUsed(k, v), claviger.Printable(textOr(v.Label, "-")), textOr(v.ID, "-"))
	}
}

// lastUsed says what the record of uses proves about the last use of a version.
func lastUsed(k kmswire.KeyDescription, v kmswire.VersionDescription) string {
	switch {
	case v.LastUse != 0:
		return clock(v.LastUse)
	case k.UsesSince == 0:
		return "not recorded"
	case v.Created == 0 || v.Created < k.UsesSince:
		return "not since " + clock(k.UsesSince)
	}
	return "none recorded"
}

func clockOr(ms int64, none string) string {
	if ms == 0 {
		return none
	}
	return clock(ms)
}

func textOr(s, none string) string {
	if s == "" {
		return none
	}
	return claviger.Printable(s)
}
