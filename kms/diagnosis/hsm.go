package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"claviger"
	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/migrate"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/provider"
	"claviger/provider/builtin"
	"claviger/provider/hsm"
	"claviger/recovery"
	"claviger/secret"
	"claviger/shellword"
)

// token returns the checks of the HSM. They come after those of the metastore, because the token is opened with it.
func (s *site) token() doctor.Group {
	return doctor.Group{Title: "HSM", Checks: append(s.beforeLogin(), s.afterLogin()...)}
}

// otherProvider returns the check of a first provider that is not an HSM.
func (s *site) otherProvider() doctor.Group {
	return doctor.Group{Title: "first provider without an HSM", Checks: []doctor.Check{
		{ID: "D-provider-open", Title: "the first provider", Needs: []string{"D-conf-read"},
			After: []string{"D-store-schema"},
			Measures: "a first provider that is not an HSM, such as a Java keystore, is opened for reading; its keys " +
				"are counted",
			Why:  "a server that cannot read its keys does not start",
			Cure: "correct the URI of the provider, the file, or its password",
			Run:  s.openOther},
	}}
}

func (s *site) openOther(ctx context.Context) []doctor.Finding {
	if s.isHSM() {
		return doctor.Skip("the first provider is an HSM")
	}
	if folder := s.trusteeFolder(); folder != "" {
		if _, err := os.Stat(folder); errors.Is(err, fs.ErrNotExist) {
			return doctor.Skip("there is no folder %s yet; the first start of the server makes it, and registers it "+
				"at the Key Trustee Server", folder)
		}
	}
	if !s.storeOpen {
		_ = s.service.OpenStore(ctx) // as in hsmLogin
	}
	if err := s.service.OpenPrimary(ctx); err != nil {
		return doctor.Error(err, "")
	}
	names, err := s.service.Primary.Keys(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	return doctor.Pass("%s (keys: %d)", secret.Value(s.service.Primary.URI()), len(names))
}

// trusteeFolder returns the folder of a first provider that keeps its keys at a Key Trustee Server; "" for another one.
func (s *site) trusteeFolder() string {
	uri := s.firstProvider()
	if !strings.HasPrefix(uri, "keytrustee:") {
		return ""
	}
	path, err := provider.UnnestPath(uri)
	if err != nil {
		return "" // opening the provider gives the error
	}
	return path
}

// beforeLogin returns the checks that need no login.
func (s *site) beforeLogin() []doctor.Check {
	return []doctor.Check{
		{ID: "D-hsm-library", Title: "the HSM's library", Needs: []string{"D-conf-read"},
			Measures: "no other user may write the PKCS#11 library of the keystore file, or a folder above it; the " +
				"library is loaded, in a process of its own unless the file says otherwise",
			Why: "without the library no key can be used; a user who can change its code can have the PIN and the " +
				"keys used",
			Cure: "install the HSM's client software, name its library in the line module of the keystore file, and " +
				"restart the server",
			Run: s.hsmLibrary},
		{ID: "D-hsm-token", Title: "the token", Needs: []string{"D-hsm-library"},
			Measures: "the library is asked for its tokens; exactly one must fit the keystore file",
			Why:      "a server that cannot find its token serves no key",
			Cure: "name the token in the keystore file, restart the server, and check that the HSM's client sees the " +
				"token as the service's user",
			Run: s.hsmToken},
		{ID: "D-hsm-pin", Title: "the PIN", Needs: []string{"D-hsm-token"},
			Measures: "the token's flags are read, and the PIN from its place; the PIN is not tried yet",
			Why:      "a token locks its PIN after a few wrong ones, and then no server can use it",
			Cure: "log in once with the HSM's own tool and the right PIN; if it is locked, its security officer " +
				"resets it",
			Run: s.hsmPIN},
		{ID: "D-hsm-login", Title: "login to the token", Needs: []string{"D-hsm-pin"},
			After:    []string{"D-store-schema"},
			Measures: "one login, the only one of the run",
			Why:      "without a login the token shows no key",
			Cure:     "correct the PIN in its place",
			Run:      s.hsmLogin},
	}
}

// afterLogin returns the checks of a token that is open.
func (s *site) afterLogin() []doctor.Check {
	return []doctor.Check{
		{ID: "D-hsm-mechanism", Title: "the mechanism", Needs: []string{"D-hsm-login"},
			Measures: "a key of the session encrypts by the best mechanism that the token offers",
			Why:      "with another mechanism than CKM_AES_ECB each EDEK is a call of its own, which is slow",
			Cure:     "allow CKM_AES_ECB in the policies of the token's partition",
			Run:      s.hsmMechanism},
		{ID: "D-hsm-template", Title: "a key as the server makes it", Needs: []string{"D-hsm-mechanism"},
			Measures: "a key of 256 bits is made with the attributes of a server's keys, encrypts, and is destroyed",
			Why:      "a policy of the token that refuses such a key refuses each new EZ key",
			Cure:     "allow such keys in the policies of the partition, or make room on the token",
			Run:      s.hsmTemplate},
		{ID: "D-hsm-sessions", Title: "room for sessions", Needs: []string{"D-hsm-mechanism"},
			Measures: "the open sessions and the limit that the token reports are compared with max-sessions",
			Why:      "a server that gets fewer sessions than it may use makes fewer calls at the same time, and waits",
			Cure: "lower max-sessions in the keystore file and restart the server, or raise the limit of the " +
				"partition",
			Run: s.hsmSessions},
		{ID: "D-hsm-room", Title: "room for keys", Needs: []string{"D-hsm-mechanism"},
			Measures: "the free memory that the token reports, in keys",
			Why:      "a full token makes no new key and no new version",
			Cure: "enlarge the partition, or destroy keys that nothing needs (claviger hsm prune, claviger key " +
				"purge)",
			Run: s.hsmRoom},
		{ID: "D-hsm-latency", Title: "round trips to the HSM", Needs: []string{"D-hsm-mechanism"},
			Measures: "20 encryptions of one block, or 20 other short calls if there is no key; a 99th percentile " +
				"above 30 ms is a warning",
			Why:  "Cloudera's procedure advises at most 30 ms: the requests of HDFS wait for the HSM",
			Cure: "bring the server nearer to the HSM",
			Run:  s.hsmLatency},
		{ID: "D-hsm-fit", Title: "token and metastore belong together", Needs: []string{"D-hsm-mechanism"},
			Measures: "the binding that each of them holds is compared with the other",
			Why: "with another token, or an older metastore, keys would be unknown, or a name would get " +
				"another key",
			Cure: "name the right token and the right metastore, or see docs/backup.md",
			Run:  s.hsmFit},
		{ID: "D-hsm-missing", Title: "records without keys", Needs: []string{"D-hsm-fit"},
			Measures: "each version of the metastore is looked up on the token",
			Why:      "files whose EDEKs need a key that is lost cannot be read",
			Cure:     "restore the token from its backup",
			Run:      s.hsmMissing},
		{ID: "D-hsm-unknown", Title: "keys without records", Needs: []string{"D-hsm-fit"},
			Measures: "each key on the token whose name is like those of claviger is looked up in the metastore",
			Why:      "the metastore is older than the token, or the keys belong to another metastore",
			Cure:     "restore the newest metastore, or adopt the keys (docs/hsm/adopt.md)",
			Run:      s.hsmUnknown},
		{ID: "D-hsm-attributes", Title: "attributes of keys", Needs: []string{"D-hsm-fit"},
			Measures: "each key of claviger must be sensitive and not extractable; and, where the token reports it, " +
				"made by the token and never extractable",
			Why:  "a key that could leave the token is not protected by it",
			Cure: "roll the EZ keys of these versions, and find out who changed the keys",
			Run:  s.hsmAttributes},
		{ID: "D-hsm-standby", Title: "the standby token", Needs: []string{"D-hsm-login"},
			Measures: "the standby of the keystore file is opened, its keys are compared with the metastore, and it " +
				"is closed",
			Why:  "while the first token does not answer, only keys that the standby has can be used",
			Cure: "copy the keys to the standby with the vendor's tools",
			Run:  s.hsmStandby},
	}
}

// errNoHSM says that the first provider has no token.
var errNoHSM = errors.New("the first provider is not an HSM")

// firstProvider returns the URI of the first provider; "" if there is none.
func (s *site) firstProvider() string {
	list, err := provider.SplitURIs(s.conf.String(hadoopconf.ProviderURI))
	if err != nil || len(list) == 0 {
		return ""
	}
	return list[0]
}

// isHSM reports whether the first provider is an HSM.
func (s *site) isHSM() bool {
	scheme, _, _ := strings.Cut(strings.ToLower(s.firstProvider()), ":")
	return scheme == "cloudera.hsmkp" || scheme == "pkcs11"
}

func (s *site) hsmLibrary(ctx context.Context) []doctor.Finding {
	if !s.isHSM() {
		return doctor.Skip("%v", errNoHSM)
	}
	c, warnings, err := hsm.TokenConfig(s.firstProvider())
	if err != nil {
		return doctor.Error(err, "correct the keystore file, or make it (claviger hsm init), and restart the server")
	}
	s.tokenConfig = c
	var list []doctor.Finding
	for _, fault := range pkcs11.ModuleFaults(c.Module, s.user) {
		list = append(list, doctor.WithCure(doctor.Failure, fault))
	}
	if len(list) > 0 {
		return list
	}
	if s.library, err = pkcs11.OpenLibrary(ctx, c); err != nil {
		return doctor.Error(err, pkcs11.CureOf(err))
	}
	s.closers = append(s.closers, s.library.Close)
	list = doctor.Pass("%s is loaded", c.Module)
	for _, text := range warnings {
		list = append(list, doctor.WithCure(doctor.Warning, text))
	}
	return list
}

func (s *site) hsmToken(ctx context.Context) []doctor.Finding {
	var err error
	if s.tokenState, err = s.library.Token(ctx); err != nil {
		return doctor.Error(err, pkcs11.CureOf(err))
	}
	return doctor.Pass("%s", s.tokenState.Name)
}

func (s *site) hsmPIN(context.Context) []doctor.Finding {
	if s.tokenState.PIN != nil {
		return doctor.Error(s.tokenState.PIN, "")
	}
	pin, err := s.tokenConfig.PIN()
	if err != nil {
		return doctor.Error(err, "put the PIN in its place, where the service's user may read it")
	}
	pin.Wipe()
	return doctor.Pass("it is in %s, and the token does not report a wrong PIN", s.tokenConfig.PINSource)
}

func (s *site) hsmLogin(ctx context.Context) []doctor.Finding {
	if !s.storeOpen {
		// Another check reports why. The token is compared with an empty store, which knows no key.
		_ = s.service.OpenStore(ctx)
	}
	err := s.service.OpenPrimary(ctx)
	if pkcs11.IsMechanism(err) {
		s.noMechanism = err
		return doctor.Pass("the token accepts the PIN")
	}
	switch {
	case pkcs11.IsPINRefused(err):
		return doctor.Error(err, "")
	case err != nil:
		return doctor.Error(err, "see the log of the HSM's client, and what the HSM's own tool shows as this user")
	}
	p, ok := s.service.Primary.(*hsm.Provider)
	if !ok {
		return doctor.Error(errNoHSM, "")
	}
	s.hsm = p
	return doctor.Pass("the token accepts the PIN")
}

func (s *site) hsmMechanism(context.Context) []doctor.Finding {
	if s.noMechanism != nil {
		return doctor.Error(s.noMechanism, "")
	}
	i := s.hsm.Info()
	text := fmt.Sprintf("%s, up to %d bytes in one call, profile %s", i.Mechanism, i.MaxData, i.Profile)
	if i.Mechanism != "CKM_AES_ECB" {
		return doctor.Warn(text, "")
	}
	return doctor.Pass("%s", text)
}

func (s *site) hsmTemplate(ctx context.Context) []doctor.Finding {
	var other *owner.RootError
	if errors.As(owner.RefuseRoot(builtin.Files(s.conf)...), &other) {
		return doctor.Skip("this process runs as root, and %s belongs to user %s: a token that keeps its keys in "+
			"files could get a file of root; run the doctor as %[2]s", other.File, other.User)
	}
	if err := s.hsm.TryKey(ctx); err != nil {
		return doctor.Error(err, "")
	}
	return doctor.Pass("a key was made, encrypted, and was destroyed")
}

func (s *site) hsmSessions(context.Context) []doctor.Finding {
	_, limit := s.hsm.Sessions()
	return sessions(s.tokenState, uint(limit)+1) //nolint:gosec // a small number; one session holds the login
}

// sessions compares the sessions that a token allows with those that a server wants.
func sessions(state pkcs11.TokenState, wants uint) []doctor.Finding {
	switch {
	case state.MaxSessions == 0:
		return doctor.Pass("the token reports no limit; the server uses up to %d", wants)
	case state.MaxSessions < wants:
		return doctor.Warn(fmt.Sprintf("the token allows %d sessions, and the server would use up to %d",
			state.MaxSessions, wants), "")
	}
	return doctor.Pass("%d of %d sessions were open, and the server uses up to %d", state.Sessions, state.MaxSessions,
		wants)
}

// fewKeys is the number of keys for which a token should have room.
const fewKeys = 100

func (s *site) hsmRoom(ctx context.Context) []doctor.Finding {
	return room(s.hsm.Room(ctx))
}

// room judges how many more keys fit on a token.
func room(keys int, known bool, err error) []doctor.Finding {
	switch {
	case err != nil:
		return doctor.Error(err, "")
	case !known:
		return doctor.Pass("the token does not report how much room it has")
	case keys == 0:
		return doctor.Fail("there is no room for another key", "")
	case keys < fewKeys:
		return doctor.Warn(fmt.Sprintf("there is room for about %d more keys", keys), "")
	}
	return doctor.Pass("there is room for about %d more keys", keys)
}

func (s *site) hsmLatency(ctx context.Context) []doctor.Finding {
	if s.storeClosed() {
		return doctor.Skip("the metastore, which names the keys, cannot be read")
	}
	return findingOf((&migrate.Probes{Latency: s.hsm.Latency}).CheckLatency(ctx))
}

// findingOf makes a finding of a check of claviger migrate plan.
func findingOf(c migrate.Check) []doctor.Finding {
	status := map[migrate.Status]doctor.Status{migrate.OK: doctor.OK, migrate.Warning: doctor.Warning,
		migrate.NotTried: doctor.Skipped, migrate.Failure: doctor.Failure}[c.Status]
	return []doctor.Finding{{Status: status, Measured: c.Measured, Cure: c.Cure}}
}

func (s *site) hsmFit(ctx context.Context) []doctor.Finding {
	if s.storeClosed() {
		return doctor.Skip("the metastore cannot be read")
	}
	var err error
	if s.compared, err = recovery.CompareToken(ctx, s.conf, s.hsm); err != nil {
		return doctor.Error(err, "")
	}
	if s.compared.Misfit != "" {
		return doctor.Fail(s.compared.Misfit, "")
	}
	if s.noStore {
		return doctor.Pass("the token is bound to no metastore, and there is none yet")
	}
	return doctor.Pass("token %s and %s", s.compared.Label, s.place.Where())
}

func (s *site) hsmMissing(context.Context) []doctor.Finding {
	t := s.compared
	switch {
	case len(t.Missing) > 0 && t.Hidden != nil:
		return doctor.Error(fmt.Errorf("versions that the token does not show: %s; %w", firstNames(t.Missing),
			t.Hidden), "")
	case len(t.Missing) > 0:
		return doctor.Fail("versions of the metastore that the token lacks: "+firstNames(t.Missing), s.hsm.CureLost())
	}
	return doctor.Pass("the token has each version of the metastore")
}

// firstNames joins the first names of a list.
func firstNames(names []string) string {
	const most = 5
	shown := make([]string, len(names))
	for i, n := range names {
		shown[i] = claviger.Printable(n)
	}
	return claviger.FirstNames(shown, most)
}

func (s *site) hsmUnknown(context.Context) []doctor.Finding {
	if t := s.compared; len(t.Unknown) > 0 {
		return doctor.Fail("keys on the token that the metastore does not know: "+firstNames(t.Unknown), "restore the "+
			"newest metastore; or adopt the keys: "+t.Adopt)
	}
	var orphans, damaged []string
	for _, o := range s.compared.Objects {
		switch {
		case o.Damaged:
			damaged = append(damaged, o.Label)
		case o.Mark == hsm.Orphan:
			orphans = append(orphans, o.Label)
		}
	}
	var list []doctor.Finding
	if len(orphans) > 0 {
		list = append(list, doctor.Warn("keys that were to be destroyed, and are still on the token: "+
			firstNames(orphans), "destroy them: claviger hsm prune --conf "+shellword.Quote(s.conf.Dir()))...)
	}
	if len(damaged) > 0 {
		list = append(list, doctor.Warn("keys that are incomplete, and have encrypted nothing: "+firstNames(damaged),
			"destroy them with the HSM's own tool")...)
	}
	if len(list) == 0 {
		return doctor.Pass("the metastore knows each key of claviger on the token (keys there: %d)",
			len(s.compared.Objects))
	}
	return list
}

func (s *site) hsmAttributes(context.Context) []doctor.Finding {
	var open, outside []string
	own := 0
	for _, o := range s.compared.Objects {
		switch {
		case o.Mark == hsm.Foreign, o.Damaged:
			continue
		case o.Unguarded():
			open = append(open, o.Label)
		case o.WasOutside:
			outside = append(outside, o.Label)
		}
		own++
	}
	var list []doctor.Finding
	if len(open) > 0 {
		list = doctor.Fail("keys that are extractable or not sensitive: "+firstNames(open), "")
	}
	if len(outside) > 0 {
		list = append(list, doctor.Warn("keys that were made elsewhere, or were extractable before, as the token "+
			"says: "+firstNames(outside), "if they are not copies from a backup of the HSM, roll their EZ keys")...)
	}
	if len(list) > 0 {
		return list
	}
	return doctor.Pass("each key of claviger is sensitive, and cannot leave the token (keys: %d)", own)
}

func (s *site) hsmStandby(ctx context.Context) []doctor.Finding {
	if s.hsm == nil {
		return doctor.Skip("the first token cannot be used")
	}
	switch standby := s.hsm.InspectStandby(ctx); {
	case standby == nil:
		return doctor.Skip("the keystore file names no standby")
	case standby.Problem != "":
		return doctor.Fail(standby.Problem, "correct the line standby of the keystore file, or the file that it "+
			"names, and restart the server")
	case len(standby.Differences()) > 0:
		return doctor.Warn(strings.Join(standby.Differences(), "; "), "")
	default:
		return doctor.Pass("%s, serial %s, has a copy of each key", standby.Token.Label, standby.Token.Serial)
	}
}
