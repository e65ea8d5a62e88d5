package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/provider/hsm"
	"claviger/terminal"
	"claviger/typo"
)

// adoptFlags are the flags of `claviger hsm adopt`.
type adoptFlags struct {
	all, aside, rebind, dryRun bool
	oneKey                     bool
	aclName, description       string
	described                  bool
	confirm                    string
	args                       []string
}

// adoption is what `hsm adopt` reports.
type adoption struct {
	Misfit     string          `json:"misfit,omitempty"`  // why token and metastore do not fit together
	Candidates []hsm.Candidate `json:"candidates"`        // all that there are
	Lost       []string        `json:"lost"`              // versions that the token lacks; --rebind gives them up
	BoundTo    string          `json:"boundTo,omitempty"` // the other metastore to which the token is bound
	Chosen     []hsm.Candidate `json:"chosen"`            // what was asked for
	Left       []hsm.Candidate `json:"left,omitempty"`    // what --all leaves out: an operator must decide
	Digest     string          `json:"digest,omitempty"`  // of what was asked for
	Done       []string        `json:"done"`              // keys
	Aside      bool            `json:"aside"`             // they were set aside
	Rebound    bool            `json:"rebound,omitempty"` // the token belongs to this metastore now
	Source     string          `json:"source,omitempty"`  // URI of the source that keys may have been migrated from

	misfit  error    // Misfit
	unbound bool     // --rebind has something to do
	known   []string // names that were asked for and that the metastore knows already
	// Of the flags: what the new record gets beside what the token tells.
	aclName   string
	described bool
	oneKey    bool
}

func newHSMAdopt() *cobra.Command {
	var f adoptFlags
	var conf string
	var out terminal.Output
	cmd := &cobra.Command{
		Use:   "adopt --conf DIR [NAME | NAME@VERSION]... [--all] [--confirm DIGEST]",
		Short: "Make the records of keys anew that the token holds and the metastore does not know",
		Long: `adopt is for a metastore that was lost, or restored from a copy that is older than the token. Without names it lists the keys of which the
token holds versions that the metastore does not know. With names, or --all, it makes their records: of whole keys, or of newer versions of a
key that is there. It shows what it would do, and does it only where that is confirmed: at a terminal by typing how many keys they are,
otherwise by --confirm with the digest that it prints.

The token tells names, numbers and lengths; the check values are computed. It does not tell description, attributes, cipher, the time of
creation, nor which versions belonged to keys that were deleted and could have come back: choose the names with care, a key that is adopted
can be used. A key that was deleted and made anew is another one, with other rules: versions whose CKA_IDs do not begin alike may be of several
keys. They are listed apart, and are not made one key of, unless --one-key says that they are (older programs gave each version another
beginning). Name the versions of one of them (NAME@VERSION), and set the others aside. Without its attribute key.acl.name a key is guarded by the rules of its own name; --acl-name gives it another. Where a creation
or a migration that was broken off has made all of a key's versions, and the metastore has it, the key gets what that asked for. --aside leaves
versions as they are: requests for them are answered as before they were made, new versions get higher numbers, and they can be adopted later,
by the names of the versions (NAME@VERSION) alone. --all leaves out what was set aside, and keys that cannot be adopted as they are: it adopts
the others, lists these with the commands for each, and ends with exit status 3.

Nodes that share a metastore in PostgreSQL may serve meanwhile: they open the keys at once. With a metastore in SQLite, and with --rebind,
adopt refuses while a server uses the metastore. --rebind gives the token to this metastore where it is bound to one that is lost. Where the
token lacks keys that the metastore knows, it was initialised anew or they were destroyed: --rebind lists them as LOST, and gives them up, so
that new keys can be made. Exit status 0: done, or nothing to do; 3: there is something to adopt, and it is not confirmed, or cannot be adopted.`,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.args, f.described = args, cmd.Flags().Changed("description")
		if (f.aclName != "" || f.described) && (len(args) != 1 || f.all || f.aside) {
			return &exitError{exitUsage, errors.New("--acl-name and --description are for one key: name it, and nothing else")}
		}
		if f.all && len(args) > 0 {
			return &exitError{exitUsage, errors.New("--all and names exclude each other")}
		}
		return adoptKeys(cmd, conf, &f, &out)
	}
	flags := cmd.Flags()
	flags.StringVar(&conf, "conf", "", "configuration folder")
	out.Flag(cmd)
	flags.BoolVar(&f.all, "all", false, "all keys that are listed, but for those set aside and those of which you must decide")
	flags.BoolVar(&f.aside, "aside", false, "set the versions aside instead of adopting them")
	flags.BoolVar(&f.oneKey, "one-key", false, "the versions of each name are of one key, though their CKA_IDs do not say so")
	flags.BoolVar(&f.rebind, "rebind", false, "give the token to this metastore, where it is bound to one that is lost or has lost keys")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what would be done, and change nothing")
	flags.StringVar(&f.aclName, "acl-name", "", "the key's attribute key.acl.name, as it was")
	flags.StringVar(&f.description, "description", "", "the key's description, as it was")
	flags.StringVar(&f.confirm, "confirm", "", "digest of the list that is to be adopted")
	_ = cmd.MarkFlagRequired("conf") // the flag is defined above
	return cmd
}

// doneText says what was done.
func (r *adoption) doneText(conf string, f *adoptFlags) string {
	verb := "adopted"
	if f.aside {
		verb = "set aside"
	}
	text := fmt.Sprintf("%s: %d keys\n", verb, len(r.Done))
	if f.rebind && len(r.Lost) > 0 {
		text += fmt.Sprintf("given up: %d key versions that the token lacks\n", len(r.Lost))
	}
	if r.Source != "" && !f.aside && len(r.Done) > 0 {
		text += fmt.Sprintf("next: claviger migrate plan --conf %s tells which of them the source %s has too; those "+
			"that were migrated from it before are taken over again by claviger migrate run --adopted NAME\n", conf, r.Source)
	}
	if r.Rebound {
		text += "the token belongs to this metastore now\n"
	}
	return text
}

// adoptKeys looks first, and opens the metastore for writing only once the list is
// confirmed: a metastore that is not there must not be made by a look.
func adoptKeys(cmd *cobra.Command, conf string, f *adoptFlags, out *terminal.Output) error {
	var report adoption
	err := withHSMService(cmd, conf, hsm.Look, func(ctx context.Context, svc *service, p *hsm.Provider) (err error) {
		if report, err = f.look(ctx, p); err != nil {
			return err
		}
		if source, ok := svc.reencryptionSource(); ok {
			report.Source = source.URI()
		}
		if len(report.Lost) == 0 {
			return nil
		}
		if hidden := p.Hidden(); hidden != nil {
			return &exitError{exitRefused, fmt.Errorf("the token lacks these key versions of the metastore: %s; they may be in these files, so nothing was given up or adopted: %w", strings.Join(report.Lost, ", "), hidden)}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !out.JSON() {
		if err := out.Write(report, report.text); err != nil {
			return err
		}
	}
	done := func(err error) error {
		if out.JSON() {
			return errors.Join(err, out.Write(report, nil))
		}
		return err
	}
	binds := f.rebind && report.unbound
	switch {
	case f.dryRun:
		return done(nil)
	case len(report.Chosen) == 0 && !binds && len(report.Left) == 0 &&
		(len(report.Candidates) == 0 || f.rebind || len(report.known) > 0):
		if report.misfit != nil {
			return done(&exitError{exitRefused, fmt.Errorf("nothing was done, and the token and the metastore do not fit together: %w", report.misfit)})
		}
		return done(out.Printf("%s\n", f.idle(&report)))
	case len(report.Chosen) == 0 && !binds && len(report.Left) > 0:
		return done(report.leftOut(conf))
	case hsm.IsStale(report.misfit) && !f.rebind:
		return done(&exitError{exitRefused, fmt.Errorf("nothing was done: %w", report.misfit)})
	case report.BoundTo != "" && !f.rebind:
		return done(&exitError{exitRefused, fmt.Errorf("nothing was done; the token is bound to the metastore %s; if that is the one that this server should use, name it by claviger.metastore.uri; if it is lost, say --rebind as well", report.BoundTo)})
	case len(report.Chosen) == 0 && !binds:
		return done(&exitError{exitRefused, errors.New("nothing was done; name the keys that are to be used (a deleted one looks like the others), or say --all")})
	}
	for _, c := range report.Chosen {
		if err := c.MayAdopt(hsm.Adoption{OneKey: f.oneKey}); err != nil && !f.aside {
			return done(&exitError{exitRefused, fmt.Errorf("key %s cannot be adopted: %s; nothing was done; leave it out, or set it aside with --aside", c.Key, claviger.Reason(err))})
		}
	}
	what := "make records of these keys"
	if f.aside {
		what = "set the versions of these keys aside"
	}
	n := len(report.Chosen)
	if f.rebind && len(report.Lost) > 0 {
		what += " and give up those that are LOST"
		n += len(report.Lost)
	}
	if err := newConfirmation(cmd, f.confirm).of(n, report.Digest, what); err != nil {
		return done(err)
	}
	access := hsm.Mend
	if f.rebind {
		access = hsm.Rebind
	}
	err = withHSM(cmd, conf, access, func(ctx context.Context, p *hsm.Provider) error {
		now, err := f.look(ctx, p)
		if err != nil {
			return err
		}
		if now.Digest != report.Digest {
			return &exitError{exitRefused, errors.New("the token or the metastore has changed meanwhile; nothing was done; look again")}
		}
		return f.act(ctx, p, now.Chosen, &report)
	})
	if err == nil {
		err = out.Printf("%s", report.doneText(conf, f))
	}
	if err == nil {
		err = report.leftOut(conf)
	}
	return done(err)
}

// idle says that there was nothing to do, and what was left.
func (f *adoptFlags) idle(r *adoption) string {
	if !f.rebind || len(r.known) > 0 || len(r.Candidates) == 0 {
		return "nothing to do"
	}
	return "nothing was done: the token belongs to this metastore already and lacks none of its keys, " +
		"so there is nothing to rebind; the keys above were not adopted: name those that are to be used, or say --all"
}

// look lists the candidates and chooses those that the flags name.
func (f *adoptFlags) look(ctx context.Context, p *hsm.Provider) (adoption, error) {
	r := adoption{Done: []string{}, Aside: f.aside, Chosen: []hsm.Candidate{}, aclName: f.aclName, described: f.described, oneKey: f.oneKey}
	if err := p.Misfit(); err != nil {
		r.Misfit, r.misfit = err.Error(), err
	}
	has, err := p.Holdings(ctx)
	if err != nil {
		return r, err
	}
	r.Lost = has.All()
	bound, mine, err := p.Bindings(ctx)
	if err != nil {
		return r, err
	}
	if len(bound) > 0 && !mine {
		r.BoundTo = bound[0].String()
	}
	r.unbound = !mine || len(bound) > 1 || len(r.Lost) > 0 || hsm.IsStale(r.misfit)
	if r.Candidates, err = p.Candidates(ctx); err != nil {
		return r, err
	}
	switch {
	case f.all && f.aside:
		r.Chosen = r.Candidates
	case f.all:
		if err := r.chooseClear(ctx, p); err != nil {
			return r, err
		}
	default:
		r.Chosen, r.known, err = choose(ctx, p, r.Candidates, f)
	}
	if err != nil {
		return r, err
	}
	if f.aside { // what was set aside before is done
		r.Chosen = slices.DeleteFunc(slices.Clone(r.Chosen), func(c hsm.Candidate) bool {
			done := !slices.ContainsFunc(c.Versions, func(o hsm.Object) bool { return o.Mark != hsm.Aside })
			if done {
				r.known = append(r.known, c.Key)
			}
			return done
		})
	}
	h := sha256.New()
	fmt.Fprintf(h, "%t %t %t %q %q\n", f.aside, f.rebind, f.oneKey, f.aclName, f.description)
	if f.rebind {
		fmt.Fprintf(h, "%q\n", r.Lost)
	}
	for _, c := range r.Chosen {
		for _, o := range c.Versions {
			fmt.Fprintf(h, "%s %q\n", o.ID, o.Label)
		}
		if c.Step != nil {
			step, err := json.Marshal(c.Step)
			if err != nil {
				return r, err
			}
			fmt.Fprintf(h, "%s\n", step)
		}
	}
	r.Digest = hex.EncodeToString(h.Sum(nil)[:8])
	return r, nil
}

// chooseClear chooses all candidates that can be adopted, but for what was set aside.
func (r *adoption) chooseClear(ctx context.Context, p *hsm.Provider) error {
	for _, c := range r.Candidates {
		if !slices.ContainsFunc(c.Versions, notAside) {
			r.known = append(r.known, c.Key)
			continue
		}
		c, err := p.Only(ctx, c, notAside)
		if err != nil {
			return err
		}
		if c.MayAdopt(hsm.Adoption{OneKey: r.oneKey}) != nil {
			r.Left = append(r.Left, c)
		} else {
			r.Chosen = append(r.Chosen, c)
		}
	}
	return nil
}

func notAside(o hsm.Object) bool { return o.Mark != hsm.Aside }

// choose returns the candidates that the arguments name, whole or by version, and those
// arguments that the metastore knows: they were adopted before. What was set aside is adopted
// by the names of its versions alone.
func choose(ctx context.Context, p *hsm.Provider, all []hsm.Candidate, f *adoptFlags) (
	chosen []hsm.Candidate, known []string, err error,
) {
	args := f.args
	chosen = []hsm.Candidate{}
	for _, c := range all {
		named := func(o hsm.Object) bool { return slices.Contains(args, o.Label) }
		switch {
		case slices.Contains(args, c.Key) && f.aside:
		case slices.Contains(args, c.Key):
			wanted := func(o hsm.Object) bool { return notAside(o) || named(o) }
			if !slices.ContainsFunc(c.Versions, wanted) {
				return nil, nil, &exitError{exitRefused, fmt.Errorf("all versions of %s that the "+
					"metastore does not know were set aside; nothing was done; name those that are to be adopted: %s", c.Key, strings.Join(labels(c), " "))}
			}
			if c, err = p.Only(ctx, c, wanted); err != nil {
				return nil, nil, err
			}
		case !slices.ContainsFunc(c.Versions, named):
			continue
		default:
			if c, err = p.Only(ctx, c, named); err != nil {
				return nil, nil, err
			}
		}
		chosen = append(chosen, c)
	}
	for _, arg := range args {
		if !slices.ContainsFunc(chosen, func(c hsm.Candidate) bool {
			return c.Key == arg || slices.ContainsFunc(c.Versions, func(o hsm.Object) bool { return o.Label == arg })
		}) {
			if there, err := knows(ctx, p, arg); err != nil {
				return nil, nil, err
			} else if there {
				known = append(known, arg)
				continue
			}
			var unknown []string
			for _, c := range all {
				unknown = append(unknown, c.Key)
				for _, o := range c.Versions {
					unknown = append(unknown, o.Label)
				}
			}
			return nil, nil, &exitError{exitRefused, fmt.Errorf("the token holds nothing of %s that the metastore does not know%s; nothing was done",
				claviger.Printable(arg), typo.DidYouMean(arg, unknown, claviger.Printable))}
		}
	}
	return chosen, known, nil
}

func labels(c hsm.Candidate) []string {
	names := make([]string, len(c.Versions))
	for i, o := range c.Versions {
		names[i] = o.Label
	}
	return names
}

// decisions are the commands, one a line, of which an operator chooses for a candidate that
// --all leaves out.
func decisions(conf string, c hsm.Candidate) string {
	var b strings.Builder
	line := func(flag string, names []string) {
		fmt.Fprintf(&b, "\n  claviger hsm adopt --conf %s%s %s", conf, flag, claviger.Printable(strings.Join(names, " ")))
	}
	if c.Why != "" {
		line(" --aside", labels(c))
		return b.String()
	}
	rest := slices.DeleteFunc(labels(c), func(name string) bool {
		return slices.ContainsFunc(c.Keys, func(names []string) bool { return slices.Contains(names, name) })
	})
	if len(rest) > 0 { // they are of the metastore's key
		line("", rest)
	}
	for _, names := range c.Keys {
		line(map[bool]string{true: " --aside", false: ""}[c.Known], names)
	}
	return b.String()
}

// leftOut is the error for what --all has left out; nil where that is nothing.
func (r *adoption) leftOut(conf string) error {
	if len(r.Left) == 0 {
		return nil
	}
	var b strings.Builder
	for _, c := range r.Left {
		fmt.Fprintf(&b, "\nkey %s cannot be adopted: %s%s", claviger.Printable(c.Key),
			claviger.Reason(c.MayAdopt(hsm.Adoption{OneKey: r.oneKey})), decisions(conf, c))
	}
	return &exitError{exitRefused, fmt.Errorf("--all has left out %d keys; choose for each of the commands below it:%s",
		len(r.Left), b.String())}
}

// knows tells whether the metastore has a key or a version of that name.
func knows(ctx context.Context, p *hsm.Provider, name string) (bool, error) {
	list, err := p.Metadata(ctx, name)
	if err != nil || list[0] != nil {
		return err == nil, err
	}
	_, err = p.Version(ctx, name)
	if claviger.Is(err, claviger.VersionNotFound) {
		return false, nil
	}
	return err == nil, err
}

// act makes the records, one key after the other.
func (f *adoptFlags) act(ctx context.Context, p *hsm.Provider, chosen []hsm.Candidate, report *adoption) error {
	a := hsm.Adoption{OneKey: f.oneKey, ACLName: f.aclName, By: ourselves().Name}
	if f.described {
		a.Description = &f.description
	}
	for _, c := range chosen {
		do := p.Adopt
		if f.aside {
			do = p.SetAside
		}
		if err := do(ctx, c, a); err != nil {
			return err
		}
		report.Done = append(report.Done, c.Key)
	}
	if !f.rebind {
		return nil
	}
	// Last: until then the next run finds the same.
	if err := p.Rebind(ctx); err != nil {
		return err
	}
	report.Rebound = true
	return nil
}

// severalKeys writes a row for each of the keys that a candidate's versions may be of.
func (adoption) severalKeys(w io.Writer, c hsm.Candidate, known string) {
	rest := make([]string, 0, len(c.Versions)) // those of the metastore's key
	row := func(names []string, note string) {
		for i, name := range names {
			names[i] = claviger.Printable(name[len(c.Key):])
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", claviger.Printable(c.Key), c.Versions[0].Bits, strings.Join(names, " "), known, note)
	}
	for _, o := range c.Versions {
		if !slices.ContainsFunc(c.Keys, func(names []string) bool { return slices.Contains(names, o.Label) }) {
			rest = append(rest, o.Label)
		}
	}
	if len(rest) > 0 {
		row(rest, "versions of the metastore's key: name them to adopt them alone")
	}
	aside := func(name string) bool {
		return slices.ContainsFunc(c.Versions, func(o hsm.Object) bool { return o.Label == name && o.Mark == hsm.Aside })
	}
	note := "perhaps a key of its own, which had this name before or after the others: name its versions, or say --one-key"
	if c.Known {
		note = "perhaps another key than the metastore's: set it aside, or say --one-key"
	}
	for _, names := range c.Keys {
		if slices.ContainsFunc(names, aside) {
			row(slices.Clone(names), "set aside: name its versions to adopt them")
			continue
		}
		row(slices.Clone(names), note)
	}
}

// text is the report for people, before anything is done.
func (r adoption) text(w io.Writer) {
	list := slices.Concat(r.Chosen, r.Left)
	if len(list) == 0 {
		list = r.Candidates
	}
	if r.Misfit != "" {
		fmt.Fprintln(w, "the token and the metastore do not fit together:", r.Misfit)
	}
	for _, name := range r.Lost {
		fmt.Fprintf(w, "LOST\t%s\tis not on the token; --rebind gives it up\n", claviger.Printable(name))
	}
	if len(list) == 0 {
		fmt.Fprintln(w, "the metastore knows every key of claviger that the token holds")
		return
	}
	fmt.Fprintln(w, "KEY\tBITS\tVERSIONS\tIN THE METASTORE\tNOTE")
	for _, c := range list {
		labels := make([]string, len(c.Versions))
		for i, o := range c.Versions {
			labels[i] = o.Label[len(c.Key):]
		}
		aclName, asked := c.Key, ""
		if c.Step != nil {
			aclName = cmp.Or(c.Step.Attributes[claviger.ACLNameAttribute], aclName)
			asked = fmt.Sprintf("; attributes, description and time of creation are those of the step %q, which was broken off", c.Step.Op)
		}
		if r.aclName != "" && len(r.Chosen) > 0 {
			aclName = r.aclName
		}
		known, note := "no", "guarded by "+claviger.Printable("key.acl."+aclName+".*")+", or the default rules"+asked
		switch {
		case c.Known && (r.aclName != "" || r.described):
			known, note = "yes", "its versions are added to those that are there; it keeps its attributes: --acl-name and --description are of new records alone"
		case c.Known:
			known, note = "yes", "its versions are added to those that are there"
		}
		if c.Unordered {
			note = "which of them is the newest is not known: roll the key afterwards"
		}
		if c.Why != "" {
			note = "cannot be adopted: " + c.Why
		} else if len(c.Keys) > 0 && !r.oneKey && !r.Aside {
			r.severalKeys(w, c, known)
			continue
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", claviger.Printable(c.Key), c.Versions[0].Bits, strings.Join(labels, " "), known, note)
	}
	untold := "description, attributes (key.acl.name)"
	switch {
	case !slices.ContainsFunc(list, func(c hsm.Candidate) bool { return c.Step == nil }):
		fmt.Fprintf(w, "Not told by the token: cipher (taken to be %s), and which of them were deleted\n", claviger.DefaultCipher)
		return
	case r.aclName != "" && r.described:
		untold = "attributes but key.acl.name"
	case r.aclName != "":
		untold = "description, attributes but key.acl.name"
	case r.described:
		untold = "attributes (key.acl.name)"
	}
	fmt.Fprintf(w, "Not told by the token: %s, cipher (taken to be %s), time of creation, and which of them were deleted\n", untold, claviger.DefaultCipher)
}
