package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/kms/acls"
	"claviger/terminal"
)

func newACLCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "acl",
		Short: "Explain and check the rules of kms-acls.xml",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newACLExplain(), newACLCheck())
	return cmd
}

// noAnswer gives an error exit status 3. For these commands status 1 would be an answer, for instance "no".
func noAnswer(err error) error {
	var coded *exitError
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return &exitError{exitRefused, err}
}

// explainFlags are the flags of `claviger acl explain`.
type explainFlags struct {
	conf, real, aclName string
	groups              []string
}

func newACLExplain() *cobra.Command {
	var f explainFlags
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "explain USER OPERATION [KEY] --conf DIR",
		Short: "Show whether a user has a right, and which line of which file decides",
		Args:  cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			x, err := explain(cmd.Context(), f, cmd.Flags().Changed("groups"), args)
			if err != nil {
				return noAnswer(err)
			}
			if err := out.Write(x, func(w io.Writer) { explanationText(w, x) }); err != nil {
				return noAnswer(err)
			}
			if !x.Allowed {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	flags.StringVar(&f.real, "real-user", "", "the user who impersonates USER with doAs, as Oozie or Hive does")
	flags.StringSliceVar(&f.groups, "groups", nil, "USER's groups, instead of those of the group mapping")
	terminal.AllowEmpty(cmd, "groups") // a user who is in no group
	flags.StringVar(&f.aclName, "acl-name", "", "KEY's attribute key.acl.name, instead of the one in the metastore")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// explain finds the answer. givenGroups means that --groups was given.
func explain(ctx context.Context, f explainFlags, givenGroups bool, args []string) (*acls.Explanation, error) {
	request, nearest, ok := authz.FindRequest(args[1])
	if !ok {
		if nearest != "" {
			nearest = "; did you mean " + nearest + "?"
		}
		return nil, &exitError{exitUsage, fmt.Errorf("there is no operation %q%s\nThe operations are: %s", args[1],
			nearest,
			strings.Join(authz.RequestNames(), ", "))}
	}
	conf, err := hadoopconf.LoadKMS(f.conf, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	q := acls.Question{User: args[0], Real: f.real, Request: request, ACLName: f.aclName}
	if givenGroups {
		q.Groups = append([]string{}, f.groups...) // not nil
	}
	if len(args) == 3 {
		q.Key = args[2]
	}
	return acls.Explain(ctx, conf, q)
}

// explanationText writes the answer as text. An arrow marks the rule that decides.
func explanationText(w io.Writer, x *acls.Explanation) {
	answer, what := "no", x.Request
	if x.Allowed {
		answer = "yes"
	}
	if x.Key != "" {
		what += " on key " + claviger.Printable(x.Key)
	}
	if x.ACLName != "" && x.ACLName != x.Key {
		what += " (ACL name " + claviger.Printable(x.ACLName) + ")"
	}
	user := claviger.Printable(x.User)
	if x.Real != "" {
		user += ", impersonated by " + claviger.Printable(x.Real) + ","
	}
	fmt.Fprintf(w, "%s: may %s %s?\n", answer, user, what)
	if by := x.DecidedBy; by != nil && by.Where != "" {
		fmt.Fprintf(w, "decided by %s: %s\n", by.Where, by.Property)
	} else if by != nil {
		fmt.Fprintf(w, "decided because no rule is set: %s\n", by.Property)
	}
	fmt.Fprintf(w, "\n\tLEVEL\tPROPERTY\tWHERE\tVALUE\tRESULT\n")
	for _, s := range x.Steps {
		mark, where, value := "", "not set", ""
		if s.Decides {
			mark = "->"
		}
		if s.Set {
			where, value = s.Where, fmt.Sprintf("%q", s.Value)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, s.Level, claviger.Printable(s.Property),
			strings.ReplaceAll(where, filepath.Dir(x.File)+string(filepath.Separator), ""), value, s.Says)
	}
	for _, n := range x.Notes {
		fmt.Fprintf(w, "\nnote: %s", n)
	}
	if len(x.Notes) > 0 {
		fmt.Fprintln(w)
	}
}

func newACLCheck() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "check --conf DIR",
		Short: "List rules of kms-acls.xml that are probably wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := hadoopconf.LoadKMS(conf, os.LookupEnv)
			if err != nil {
				return noAnswer(err)
			}
			found, err := acls.Check(cmd.Context(), site)
			if err != nil {
				return noAnswer(err)
			}
			if err := out.Write(found, func(w io.Writer) { findingsText(w, found) }); err != nil {
				return noAnswer(err)
			}
			if len(found.Findings) > 0 {
				return &exitError{code: exitRefused}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// findingsText writes the findings as text.
func findingsText(w io.Writer, d *acls.Findings) {
	for _, s := range d.Findings {
		fmt.Fprintln(w, s)
	}
	for _, n := range d.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if len(d.Findings) == 0 {
		fmt.Fprintf(w, "%s: nothing was found\n", d.File)
	}
}
