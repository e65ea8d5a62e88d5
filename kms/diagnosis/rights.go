package diagnosis

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"claviger"
	"claviger/authz"
	"claviger/doctor"
	"claviger/hadoopconf"
	"claviger/kms/acls"
)

// rights returns the checks of kms-acls.xml.
func (s *site) rights() doctor.Group {
	return doctor.Group{Title: "rights", Checks: []doctor.Check{
		{ID: "D-acl-nobody", Title: "somebody may use a key", Needs: []string{"D-conf-read"},
			Measures: "kms-acls.xml is read, and whether a rule of it admits any user to any key",
			Why:      "without such a rule nobody may use any key; without rules of keys, everybody may use every key",
			Cure:     "write rules into kms-acls.xml (docs/acls.md), or copy the file that is in use at the source",
			Run:      s.aclNobody},
		{ID: "D-acl-rules", Title: "rules that are probably wrong", Needs: []string{"D-acl-nobody"},
			Measures: "the findings of `claviger acl check`: misspelt rules, rules in the wrong file, rules that " +
				"admit nobody",
			Why: "a rule that is not meant as it is written admits a user who must not decrypt, or refuses one who " +
				"must",
			Cure: "correct the rule; claviger acl explain shows its effect",
			Run:  s.aclRules},
		{ID: "D-acl-hdfs", Title: "HDFS' superusers may not decrypt", Needs: []string{"D-acl-nobody"},
			After:    []string{"D-store-schema"},
			Measures: "for each user of claviger.kms.hdfs.superusers, whether the rules allow DECRYPT_EEK",
			Why: "a superuser of HDFS can read every EDEK and every encrypted file; with the DEKs, the encryption " +
				"protects nothing from the administrators of HDFS",
			Cure: "name the user in hadoop.kms.blacklist.DECRYPT_EEK",
			Run:  s.aclHDFS},
		{ID: "D-acl-keys", Title: "who may use the first keys", Needs: []string{"D-acl-nobody", "D-store-schema"},
			Measures: fmt.Sprintf("for the first %d keys, the rules that decide on making EDEKs, decrypting and "+
				"managing", shownKeys),
			Why:  "files of a zone whose key nobody may use for decrypting cannot be read",
			Cure: "admit the users of the key: key.acl.KEY.DECRYPT_EEK, or default.key.acl.DECRYPT_EEK",
			Run:  s.inStore(s.aclKeys)},
	}}
}

// shownKeys is the number of keys whose rules are shown.
const shownKeys = 3

func (s *site) aclNobody(ctx context.Context) []doctor.Finding {
	found, err := acls.Check(ctx, s.conf)
	if err != nil {
		return doctor.Error(err, "")
	}
	s.aclFindings = found
	if found.Useless != "" {
		measured, cure, _ := strings.Cut(found.Useless, "; ")
		return doctor.Fail(measured, cure)
	}
	return doctor.Pass("%s has rules that admit users to keys", found.File)
}

func (s *site) aclRules(context.Context) []doctor.Finding {
	var list []doctor.Finding
	for _, text := range s.aclFindings.Findings {
		list = append(list, doctor.WithCure(doctor.Warning, text))
	}
	if len(list) == 0 {
		return doctor.Pass("no rule is doubtful")
	}
	return list
}

// keyNames returns the names of the first keys; none if the metastore is not open.
func (s *site) keyNames(ctx context.Context) ([]string, error) {
	if !s.storeOpen {
		return nil, nil
	}
	names, _, err := s.service.Store.Page(ctx, "", shownKeys)
	return names, err
}

// explainRequest explains whether a user may make a request for a key; "" is no key.
func (s *site) explainRequest(ctx context.Context, user, request, key string) (*acls.Explanation, error) {
	r, _, ok := authz.FindRequest(request)
	if !ok {
		return nil, errors.New("no request is called " + request)
	}
	return acls.Explain(ctx, s.conf, acls.Question{User: user, Request: r, Key: key})
}

func (s *site) aclHDFS(ctx context.Context) []doctor.Finding {
	keys, err := s.keyNames(ctx)
	if err != nil {
		return doctor.Error(err, "")
	}
	var list []doctor.Finding
	users, _, _ := strings.Cut(s.conf.WithPrefix(hadoopconf.HDFSSuperusers)[""], " ")
	for user := range strings.SplitSeq(users, ",") {
		if user == "" || user == "*" {
			continue
		}
		f, err := s.superuser(ctx, user, keys)
		if err != nil {
			return doctor.Error(err, "")
		}
		list = append(list, f)
	}
	if len(list) == 0 {
		return doctor.Skip("%s names no user", hadoopconf.HDFSSuperusers)
	}
	return list
}

// superuser returns whether a superuser of HDFS may decrypt.
func (s *site) superuser(ctx context.Context, user string, keys []string) (doctor.Finding, error) {
	x, err := s.explainRequest(ctx, user, "DECRYPT_EEK", "")
	if err != nil {
		return doctor.Finding{}, err
	}
	if !x.Allowed {
		by := "no rule admits the user"
		if x.DecidedBy != nil {
			by = x.DecidedBy.Property
		}
		return doctor.Finding{Status: doctor.OK, Measured: fmt.Sprintf("%s may not decrypt: %s", user, by)}, nil
	}
	f := doctor.Finding{Status: doctor.Warning, Measured: user + " may decrypt, where the rules of a key admit " + user,
		Cure: fmt.Sprintf("name %s in hadoop.kms.blacklist.DECRYPT_EEK", user)}
	for _, key := range keys {
		if x, err = s.explainRequest(ctx, user, "DECRYPT_EEK", key); err != nil {
			return f, err
		}
		if x.Allowed {
			f.Status, f.Measured = doctor.Failure, fmt.Sprintf("%s may decrypt with the key %s", user,
				claviger.Printable(key))
			break
		}
	}
	return f, nil
}

func (s *site) aclKeys(ctx context.Context) []doctor.Finding {
	keys, err := s.keyNames(ctx)
	switch {
	case err != nil:
		return doctor.Error(err, "")
	case len(keys) == 0:
		return doctor.Skip("there is no key yet")
	}
	var list []doctor.Finding
	for _, key := range keys {
		f, err := s.usersOf(ctx, key)
		if err != nil {
			return doctor.Error(err, "")
		}
		list = append(list, f)
	}
	return list
}

// outsider is the name of a user whom no rule names, so that each rule of a request is evaluated.
const outsider = "claviger-doctor-no-user"

// usersOf shows the rules that decide on a key.
func (s *site) usersOf(ctx context.Context, key string) (doctor.Finding, error) {
	f := doctor.Finding{Status: doctor.OK}
	var texts []string
	for _, request := range []string{"GENERATE_EEK", "DECRYPT_EEK", "ROLL_NEW_VERSION"} {
		x, err := s.explainRequest(ctx, outsider, request, key)
		if err != nil {
			return f, err
		}
		users, nobody := admitted(x)
		texts = append(texts, request+" "+users)
		if request == "DECRYPT_EEK" && nobody {
			f.Status = doctor.Warning
		}
	}
	f.Measured = claviger.Printable(key) + ": " + strings.Join(texts, "; ")
	return f, nil
}

// admitted describes the users whom the rules of a request admit. nobody is true if they admit nobody.
func admitted(x *acls.Explanation) (text string, nobody bool) {
	if x.Allowed {
		return "everybody", false
	}
	var rules []string
	for _, step := range x.Steps {
		value := strings.TrimSpace(step.Value)
		if value == "" || strings.HasPrefix(step.Property, "hadoop.kms.blacklist.") {
			continue
		}
		text := fmt.Sprintf("%s (%s)", claviger.Printable(value), step.Property)
		if step.Level == "operation" { // the rules of the key were not evaluated
			text += ", as far as the rules of the key admit them"
		}
		rules = append(rules, text)
	}
	if len(rules) == 0 {
		return "nobody", true
	}
	return strings.Join(rules, " or "), false
}
