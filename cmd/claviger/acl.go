package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/authz"
	"claviger/hadoopconf"
	"claviger/kms"
	"claviger/metastore"
	"claviger/metastore/location"
	"claviger/terminal"
	"claviger/typo"
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

// noAnswer marks an error of `claviger acl`: status 1 is "no", and so can't also
// be "don't know".
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
		Short: "Tell whether a user may do something, and which line of which file decides",
		Long: `explain tells whether the rules of DIR's kms-acls.xml admit USER (a short name) to OPERATION on KEY, and goes through the rules in the
order in which the server does. OPERATION is a right, such as DECRYPT_EEK, or a request's name in the audit log; capitals do not matter:
` + wrapped(authz.RequestNames(), 130) + `
Without KEY, only the rules at operation level are asked.
It reads the files, not the running server: a server takes a change over within about a second, and keeps its rules where a file is broken.
Exit status: 0 he may, 1 he may not, 2 the command line is wrong, 3 there is no answer, for instance as a file is broken.`,
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			x, err := explain(cmd.Context(), f, cmd.Flags().Changed("groups"), args)
			if err != nil {
				return noAnswer(err)
			}
			if err := out.Write(x, x.text); err != nil {
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
	flags.StringVar(&f.real, "real-user", "", "the user who impersonates USER by doAs, as Oozie or Hive does")
	flags.StringSliceVar(&f.groups, "groups", nil, "USER's groups, instead of those that the group mapping tells")
	flags.StringVar(&f.aclName, "acl-name", "", "KEY's attribute key.acl.name, instead of that in the metastore")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

func wrapped(words []string, width int) string {
	var b strings.Builder
	line := 0
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		if line += len(w) + 2; line > width {
			b.WriteByte('\n')
			line = len(w) + 2
		}
		b.WriteString(w)
	}
	return b.String() + "."
}

// explanation is what `claviger acl explain` tells.
type explanation struct {
	User    string   `json:"user"`
	Real    string   `json:"realUser,omitempty"`
	Groups  []string `json:"groups"`
	Request string   `json:"request"`
	Key     string   `json:"key,omitempty"`
	ACLName string   `json:"aclName,omitempty"`
	File    string   `json:"file"`
	authz.Decision
	DecidedBy *authz.Step `json:"decidedBy,omitempty"`
	Notes     []string    `json:"notes,omitempty"`
}

// explain finds the answer. givenGroups tells whether f.groups is one.
func explain(ctx context.Context, f explainFlags, givenGroups bool, args []string) (*explanation, error) {
	request, near, ok := authz.FindRequest(args[1])
	if !ok {
		if near != "" {
			near = "; did you mean " + near + "?"
		}
		return nil, &exitError{exitUsage, fmt.Errorf("there is no operation %q%s\nThe operations are: %s", args[1], near, strings.Join(authz.RequestNames(), ", "))}
	}
	conf, err := hadoopconf.LoadKMS(f.conf, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	byKey, err := conf.Bool("hadoop.kms.key.authorization.enable")
	if err != nil {
		return nil, err
	}
	policy, warnings, notes, err := kms.LoadPolicy(conf)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 {
		notes = append(notes, fmt.Sprintf("odd in the file: %d; `claviger acl check` names what", len(warnings)))
	}
	groups := func(string) []string { return f.groups }
	if !givenGroups {
		mapping, err := kms.NewGroups(conf, slog.New(slog.DiscardHandler))
		if err != nil {
			return nil, err
		}
		groups = mapping.Of
	}
	who := claviger.Principal{Name: args[0], Short: args[0]}
	if f.real != "" {
		who.Real = &claviger.Principal{Name: f.real, Short: f.real}
	}
	x := &explanation{User: args[0], Real: f.real, Groups: append([]string{}, groups(args[0])...), Request: request.Name, File: kms.ACLFile(conf), Notes: notes}
	if len(args) == 3 {
		x.Key = args[2]
	}
	switch {
	case request.Key == "" && x.Key != "":
		x.note("%s asks no rule of a key", request.Name)
	case request.Key == "":
	case !byKey && request.Key != authz.KeyMigrate:
		p, _ := conf.Lookup("hadoop.kms.key.authorization.enable")
		x.note("hadoop.kms.key.authorization.enable is false (%s): the rules of keys are not asked", p.Where())
	case x.Key == "":
		x.note("no key is named: the rules of keys, which are asked as well, are left out")
	default:
		x.ACLName = f.aclName
		if x.ACLName == "" {
			if x.ACLName, err = x.findACLName(ctx, conf, request); err != nil {
				return nil, err
			}
		}
	}
	x.Decision = policy.Explain(request, x.ACLName, who, groups)
	if by, ok := x.Decision.DecidedBy(); ok {
		x.DecidedBy = &by
	}
	return x, nil
}

func (x *explanation) note(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

// text is the answer for people; the arrow marks the rule that decided.
func (x *explanation) text(w io.Writer) {
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
		fmt.Fprintf(w, "decided by the want of a rule: %s\n", by.Property)
	}
	fmt.Fprintf(w, "\n\tLEVEL\tPROPERTY\tWHERE\tVALUE\tSO\n")
	for _, s := range x.Steps {
		mark, where, value := "", "not set", ""
		if s.Decides {
			mark = "->"
		}
		if s.Set {
			where, value = s.Where, fmt.Sprintf("%q", s.Value)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", mark, s.Level, claviger.Printable(s.Property), strings.ReplaceAll(where, filepath.Dir(x.File)+string(filepath.Separator), ""), value, s.Says)
	}
	for _, n := range x.Notes {
		fmt.Fprintf(w, "\nnote: %s", n)
	}
	if len(x.Notes) > 0 {
		fmt.Fprintln(w)
	}
}

// findACLName looks up under which name the key is guarded. Where there is no
// metastore it is taken to be guarded under its own, which nearly all keys are; where
// there is one that this user may not read, say, there is no answer.
func (x *explanation) findACLName(ctx context.Context, conf *hadoopconf.Conf, r authz.Request) (string, error) {
	var key *metastore.Key
	var names []string // of all keys, where this one is not among them
	err := location.Read(ctx, conf, func(s metastore.Store) error {
		found, err := s.Get(ctx, x.Key)
		if err != nil {
			return err
		}
		if key = found[0]; key == nil {
			names, err = s.Names(ctx)
		}
		return err
	})
	switch {
	case err != nil && !errors.Is(err, location.ErrNone):
		return "", fmt.Errorf("which rules guard key %s is not known, for the metastore cannot be read: %w; run this command as the server's user, or tell the key's attribute key.acl.name by --acl-name", x.Key, err)
	case err != nil:
		x.note("key %s could not be looked up (%v): its ACL name is taken to be its own; --acl-name tells another", x.Key, err)
	case key == nil && r.Name == "CREATE_KEY":
	case key == nil && r.Key == authz.KeyMigrate:
		x.note("key %s is not here yet: its ACL name at the source, which counts, is taken to be its own; --acl-name tells another", x.Key)
	case key == nil:
		x.note("the metastore has no key %s: its ACL name is taken to be its own; --acl-name tells another%s", x.Key,
			typo.DidYouMean(x.Key, names, claviger.Printable))
	default:
		return key.ACLName(), nil
	}
	return x.Key, nil
}

func newACLCheck() *cobra.Command {
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "check --conf DIR",
		Short: "Name the rules of kms-acls.xml that do nothing, or not what is probably meant",
		Long: `check reads DIR's kms-acls.xml as the server does and names rules that are misspelt, that can admit nobody, that shut a key's other
operations, and that are for keys which the metastore does not have.
Exit status: 0 nothing was found, 2 the command line is wrong, 3 something was found, or the file cannot be used.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := checkACLs(cmd.Context(), conf)
			if err != nil {
				return noAnswer(err)
			}
			if err := out.Write(found, found.text); err != nil {
				return noAnswer(err)
			}
			if len(found.Doubts) > 0 {
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

// aclDoubts is what `claviger acl check` tells.
type aclDoubts struct {
	File   string   `json:"file"`
	Doubts []string `json:"doubts"`
	Notes  []string `json:"notes,omitempty"`
}

func (d *aclDoubts) text(w io.Writer) {
	for _, s := range d.Doubts {
		fmt.Fprintln(w, s)
	}
	for _, n := range d.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	if len(d.Doubts) == 0 {
		fmt.Fprintf(w, "%s: nothing was found\n", d.File)
	}
}

// rulesByKey tells whether rules guard keys. A value that cannot be read stops the server.
func rulesByKey(conf *hadoopconf.Conf) bool {
	byKey, err := conf.Bool("hadoop.kms.key.authorization.enable")
	return err != nil || byKey
}

// noACLFile says what the want of kms-acls.xml means.
func noACLFile(conf *hadoopconf.Conf) string {
	if !rulesByKey(conf) {
		return "there is no " + kms.ACLFile(conf) + ": everybody may do everything with every key; write the file, with hadoop.kms.acl.* properties"
	}
	return "there is no " + kms.ACLFile(conf) + ": nobody may use any key; write the file, with default.key.acl.* or key.acl.* properties"
}

func checkACLs(ctx context.Context, dir string) (*aclDoubts, error) {
	conf, err := hadoopconf.LoadKMS(dir, os.LookupEnv)
	if err != nil {
		return nil, err
	}
	policy, warnings, notes, err := kms.LoadPolicy(conf)
	if err != nil {
		return nil, err
	}
	var known []string
	err = location.Read(ctx, conf, func(s metastore.Store) error {
		names, err := s.Names(ctx)
		if err != nil {
			return err
		}
		keys, err := s.Get(ctx, names...)
		for _, k := range keys {
			if k != nil { // else it was deleted in between
				known = append(known, k.ACLName())
			}
		}
		known = slices.Compact(slices.Sorted(slices.Values(known)))
		return err
	})
	d := &aclDoubts{File: kms.ACLFile(conf), Doubts: conf.MisplacedRules()}
	switch {
	case err != nil && !errors.Is(err, location.ErrNone):
		known = nil
		d.Doubts = append(d.Doubts, fmt.Sprintf("rules for keys that are not there were not looked for, as the metastore cannot be read: %v; run this command as the server's user", err))
	case len(known) == 0:
		known = nil // keys of other providers than an HSM are not in it
		notes = append(notes, "no keys could be looked up in the metastore: rules for keys that are not there were not looked for")
	}
	d.Notes = notes
	if err := conf.CheckRules(); err != nil {
		d.Doubts = append(d.Doubts, err.Error())
	}
	if _, err := os.Stat(d.File); errors.Is(err, fs.ErrNotExist) {
		d.Doubts = append(d.Doubts, noACLFile(conf))
	} else if rulesByKey(conf) && !policy.AdmitsToKeys() {
		d.Doubts = append(d.Doubts, d.File+": no rule of it admits anybody to a key: nobody may use any key; add "+
			"default.key.acl.*, whitelist.key.acl.* or key.acl.* properties")
	}
	d.Doubts = append(append(append([]string{}, d.Doubts...), warnings...), policy.Doubts(known)...)
	return d, nil
}
