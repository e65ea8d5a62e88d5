package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/owner"
	"claviger/secret"
	"claviger/terminal"
	"claviger/typo"
)

// Use and Short describe the command.
const (
	Use   = "doctor --conf DIR"
	Short = "Check a configuration, its HSM, its metastore and its rights, and say what to correct"
)

// Options are the flags of the command.
type Options struct {
	Conf    string
	Role    string // "" is the first role
	User    string // "" is the user of this process
	Only    []string
	Explain string
	// NameNodes are the URLs of NameNodes of one HDFS; none if they are not asked.
	NameNodes []string
	// KeyHSM and KeyHSMCertificate are the URL and the certificate of a trustee's Key HSM; "" for none.
	KeyHSM, KeyHSMCertificate string
	Trustee                   string // folder of a Key HSM's trustee; "" for none

	HDFS   string // folder of HDFS' configuration; "" for none
	AsUser string // short name of a user who reads files in encryption zones; "" for none
	Backup string // file of the newest backup of the metastore; "" for none
	FailOn string // "warning" makes a warning count as a failure
	Quiet  bool
	Out    terminal.Output
}

// Define gives the command its flags.
func (o *Options) Define(cmd *cobra.Command, roles []Role) {
	o.Out.Flag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.Conf, "conf", "", "configuration folder")
	terminal.Synonym(cmd, "confdir", "conf") // the name of the flag for a trustee's folder
	f.StringVar(&o.Role, "role", roles[0].Name,
		"what the folder of --conf is for: "+strings.Join(roleNames(roles), ", "))
	f.StringVar(&o.User, "user", "", "user that the service runs as, for rights to files (default: the user of this "+
		"process)")
	f.StringVar(&o.HDFS, "hdfs-conf", "", "folder with the cluster's core-site.xml and hdfs-site.xml")
	f.StringSliceVar(&o.NameNodes, "namenode", nil, "ask these NameNodes of one HDFS, as in "+
		"https://HOST:9871,https://HOST2:9871")
	f.StringVar(&o.AsUser, "as-user", "", "short name of a user who reads files in encryption zones; an EDEK is "+
		"opened at the source for this user")
	f.StringVar(&o.KeyHSM, "keyhsm", "", "URL of the Key HSM that the trustee's command names")
	f.StringVar(&o.KeyHSMCertificate, "keyhsm-cert", "", "file with the certificate of that Key HSM")
	cmd.MarkFlagsRequiredTogether("keyhsm", "keyhsm-cert")
	f.StringVar(&o.Trustee, "trustee", "", "folder of a trustee on this host whose deposits the Key HSM wraps")
	f.StringVar(&o.Backup, "backup", "", "file of the newest backup of the metastore, to check it and its age")
	f.StringSliceVar(&o.Only, "only", nil, "make only these checks, and those that they need")
	f.StringVar(&o.Explain, "explain", "", "describe this check, and make none")
	f.StringVar(&o.FailOn, "fail-on", string(Failure), "exit with status 3 on a failure, or also on a warning")
	f.BoolVar(&o.Quiet, "quiet", false, "show no progress")
}

// Role is a kind of service.
type Role struct {
	Name string // "kms"
	// Groups returns the checks. It opens nothing: the checks do. end is called after the last check.
	Groups func(o *Options) (groups []Group, end func() error, err error)
}

// ServiceUser returns the user that the service runs as.
func (o *Options) ServiceUser() (secret.User, error) {
	if o.User == "" {
		return secret.Self(), nil
	}
	u, err := secret.UserNamed(o.User)
	if err != nil {
		return u, &terminal.UsageError{Err: fmt.Errorf("--user: %w", err)}
	}
	return u, nil
}

// UserOf returns the user whose rights count for the files of a service: that of --user, else the owner of the files if
// this process runs as root and they belong to another user, else the user of this process. findings says so.
func (o *Options) UserOf(files ...string) (u secret.User, findings []Finding, err error) {
	u, err = o.ServiceUser()
	var other *owner.RootError
	if err != nil || o.User != "" || !errors.As(owner.RefuseRoot(files...), &other) {
		return u, nil, err
	}
	if u, err = secret.UserNamed(other.User); err != nil {
		return u, nil, err
	}
	return u, Warn(fmt.Sprintf("this process runs as root, and %s belongs to user %s; rights are judged for %[2]s",
		other.File, other.User), fmt.Sprintf("run the doctor as that user (sudo -u %s claviger doctor ...), or give "+
		"--user %[1]s", other.User)), nil
}

// Secrets is Exposed for the user of UserOf.
func (o *Options) Secrets(files []secret.File) []Finding {
	var paths []string
	for _, f := range files {
		if _, err := os.Stat(f.Path); err == nil {
			paths = append(paths, f.Path)
		}
	}
	u, judged, err := o.UserOf(paths...)
	if err != nil {
		return Error(err, "name a user of this host with --user")
	}
	return append(judged, Exposed(u, files)...)
}

func roleNames(roles []Role) (names []string) {
	for _, r := range roles {
		names = append(names, r.Name)
	}
	return names
}

// Run does the work of the command. It shows progress on log.
func Run(ctx context.Context, o *Options, roles []Role, log io.Writer) (err error) {
	if o.Explain != "" {
		return o.explain(roles)
	}
	role, err := o.check(roles)
	if err != nil {
		return err
	}
	groups, end, err := role.Groups(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	validate(groups)
	if err := known(o.Only, groups); err != nil {
		return err
	}
	r := &Report{Format: "claviger doctor 1", Role: role.Name, At: time.Now().UTC().Truncate(time.Second)}
	if r.Conf, err = filepath.Abs(o.Conf); err != nil {
		return err
	}
	user, err := o.ServiceUser()
	if err != nil {
		return err
	}
	r.User = user.Name
	progress := terminal.NewProgress(log, "checks", o.Quiet)
	defer progress.End()
	r.Groups, r.Status, err = run(ctx, selectChecks(groups, o.Only), progress.Show)
	progress.End()
	if err != nil {
		return fmt.Errorf("not all checks were made: %w", err)
	}
	if err := o.Out.Write(r, r.text); err != nil {
		return err
	}
	return r.verdict(o.FailOn == string(Warning))
}

// check returns the role, or an error of the command line.
func (o *Options) check(roles []Role) (Role, error) {
	i := slices.IndexFunc(roles, func(r Role) bool { return o.Role == "" || r.Name == o.Role })
	var text string
	switch {
	case o.Conf == "":
		text = "--conf is missing: name the configuration folder"
	case i < 0:
		text = fmt.Sprintf("--role: %q is not %s", o.Role, strings.Join(roleNames(roles), " or "))
	case !slices.Contains([]string{"", string(Failure), string(Warning)}, o.FailOn):
		text = fmt.Sprintf("--fail-on: %q is not %s or %s", o.FailOn, Failure, Warning)
	default:
		return roles[i], nil
	}
	return Role{}, &terminal.UsageError{Err: errors.New(text)}
}

// known returns an error of the command line for an ID that no check has.
func known(ids []string, groups []Group) error {
	var all []string
	for _, g := range groups {
		for _, c := range g.Checks {
			all = append(all, c.ID)
		}
	}
	for _, id := range ids {
		if !slices.Contains(all, id) {
			return &terminal.UsageError{Err: fmt.Errorf("no check has the ID %q%s; docs/doctor.md lists all checks", id,
				typo.DidYouMean(id, all, func(s string) string { return s }))}
		}
	}
	return nil
}

// explain writes the text of one check.
func (o *Options) explain(roles []Role) error {
	var all []Group
	for _, role := range roles {
		groups, _, err := role.Groups(o)
		if err != nil {
			return err
		}
		all = append(all, groups...)
	}
	if err := known([]string{o.Explain}, all); err != nil {
		return err
	}
	for _, g := range all {
		for _, c := range g.Checks {
			if c.ID == o.Explain {
				return o.Out.Write(c.explanation(), func(w io.Writer) { c.explain(w) })
			}
		}
	}
	return nil
}

// explanation is the JSON of --explain.
func (c *Check) explanation() any {
	return struct {
		ID       string   `json:"id"`
		Title    string   `json:"title"`
		Measures string   `json:"measures"`
		Why      string   `json:"why"`
		Cure     string   `json:"cure"`
		Needs    []string `json:"needs"`
	}{c.ID, c.Title, c.Measures, c.Why, c.Cure, c.Needs}
}

func (c *Check) explain(w io.Writer) {
	fmt.Fprintf(w, "%s: %s\n\n", c.ID, c.Title)
	for _, line := range c.lines() {
		fmt.Fprintln(w, terminal.Wrap(line, terminal.HelpWidth, "  "))
	}
}

// lines are the texts of a check, for --explain and docs/doctor.md.
func (c *Check) lines() []string {
	lines := []string{"Measured: " + c.Measures, "Why: " + c.Why, "Cure: " + c.Cure}
	if len(c.Needs) > 0 {
		lines = append(lines, "Needs: "+strings.Join(c.Needs, ", "))
	}
	return lines
}

// text writes the report for people.
func (r *Report) text(w io.Writer) {
	fmt.Fprintf(w, "%s, checked for user %s at %s\n", claviger.Printable(r.Conf), claviger.Printable(r.User),
		r.At.Format(time.RFC3339))
	width := 0
	for _, g := range r.Groups {
		for _, c := range g.Checks {
			width = max(width, len(c.ID))
		}
	}
	for _, g := range r.Groups {
		if reason := g.skipped(); reason != "" {
			fmt.Fprintf(w, "\n%s: skipped, because %s\n", g.Title, reason)
			continue
		}
		fmt.Fprintf(w, "\n%s: %s\n", g.Title, g.Status)
		for _, c := range g.Checks {
			c.text(w, width)
		}
	}
	fmt.Fprintf(w, "\n%s\n", r.summary())
}

// skipped returns the reason for which all checks of a group were skipped; "" if there is no such reason.
func (g *GroupResult) skipped() string {
	for _, c := range g.Checks {
		if c.cause == "" || c.cause != g.Checks[0].cause {
			return ""
		}
	}
	return g.Checks[0].cause
}

// text writes a check: a line for each finding, and below it what to do.
func (r *Result) text(w io.Writer, width int) {
	last := -1 // the last finding that needs a reason
	for i, f := range r.Findings {
		if f.Status == Warning || f.Status == Failure {
			last = i
		}
	}
	for i, f := range r.Findings {
		fmt.Fprintf(w, "  %-7s  %-*s  %s\n", f.Status, width, r.ID, f.Measured)
		if f.Cure != "" {
			fmt.Fprintf(w, "           cure: %s\n", f.Cure)
		}
		if i == last {
			fmt.Fprintf(w, "           why: %s\n", r.Why)
		}
	}
}

// summary is the last line: it always says the result.
func (r *Report) summary() string {
	count := func(s Status, one, many string) string {
		ids := r.IDs(s)
		switch len(ids) {
		case 0:
			return "no " + one
		case 1:
			return "1 " + one + " (" + ids[0] + ")"
		}
		return fmt.Sprintf("%d %s (%s)", len(ids), many, strings.Join(ids, ", "))
	}
	return fmt.Sprintf("%s, %s; passed: %d, skipped: %d", count(Failure, "failure", "failures"),
		count(Warning, "warning", "warnings"), len(r.IDs(OK)), len(r.IDs(Skipped)))
}

// pageWidth is the number of columns of a line of docs/doctor.md, after the "- " of a list.
const pageWidth = 118

// Page writes the descriptions of all checks for docs/doctor.md.
func Page(w io.Writer, roles []Role) error {
	for _, role := range roles {
		groups, _, err := role.Groups(&Options{Role: role.Name})
		if err != nil {
			return err
		}
		validate(groups)
		for _, g := range groups {
			fmt.Fprintf(w, "\n## %s: %s\n", role.Name, g.Title)
			for _, c := range g.Checks {
				fmt.Fprintf(w, "\n### %s\n\n%s.\n\n", c.ID, strings.ToUpper(c.Title[:1])+c.Title[1:])
				for _, line := range c.lines() {
					fmt.Fprintf(w, "- %s\n", terminal.Wrap(line, pageWidth, "  "))
				}
			}
		}
	}
	return nil
}
