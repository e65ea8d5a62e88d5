package pages

import (
	"net/http"
	"strings"
	"time"

	"claviger"
	"claviger/authz"
)

// access is the body of the page Access: `claviger acl explain` as a form, by the rules in force.
type access struct {
	User, Real, Operation, Key string
	Operations                 []string
	Asked                      bool
	Problem                    string
	ACLName                    string
	Groups                     []string
	Decision                   authz.Decision
	DecidedBy                  *authz.Step
	Notes                      []string
	Command                    string
	Rules                      rulesView
}

// rulesView is the state of kms-acls.xml.
type rulesView struct {
	File   string // "" without details
	Loaded time.Time
	Loads  uint64
	Error  string
}

func (s *session) access() {
	q := s.r.URL.Query()
	a := access{User: q.Get("user"), Real: q.Get("real"), Operation: q.Get("operation"), Key: q.Get("key"),
		Operations: authz.RequestNames(), Rules: s.rulesView()}
	if a.User == "" {
		a.User = s.user.Short
	}
	if a.Operation == "" {
		a.Operation = "DECRYPT_EEK"
	}
	status := http.StatusOK
	switch request, _, known := authz.FindRequest(a.Operation); {
	case !q.Has("operation"):
	case !s.details && (a.User != s.user.Short || a.Real != ""):
		status = http.StatusForbidden
		a.Problem = "You may ask about yourself. Administrators (hadoop.kms.http.administrators) may ask about others."
	case !known:
		status = http.StatusBadRequest
		a.Problem = "There is no operation of that name."
	default:
		s.answer(&a, request)
	}
	s.show(status, "access", "Access", 0, a)
}

// rulesView describes the rules in force.
func (s *session) rulesView() rulesView {
	state := s.Rules()
	v := rulesView{Loaded: state.Loaded, Loads: state.Loads}
	if state.Err != nil {
		v.Error = "The file has changed since, and the change cannot be used. The rules that were loaded before are " +
			"in force."
	}
	if s.details {
		v.File = s.RulesFile
		if state.Err != nil {
			v.Error += " " + state.Err.Error()
		}
	}
	return v
}

// answer decides the question. Without details, the answer does not show whom a rule names.
func (s *session) answer(a *access, request authz.Request) {
	a.Asked, a.Operation = true, request.Name
	who := claviger.Principal{Name: a.User, Short: a.User}
	if a.User == s.user.Short {
		who = s.user
	}
	if a.Real != "" {
		who.Real = &claviger.Principal{Name: a.Real, Short: a.Real}
	}
	a.ACLName = s.aclName(a, request)
	a.Groups = s.Groups(who.Short)
	a.Decision = s.Policy().Explain(request, a.ACLName, who, s.Groups)
	if !s.details {
		for i := range a.Decision.Steps {
			step := &a.Decision.Steps[i]
			step.Value, step.Where = "", ""
		}
	}
	if by, ok := a.Decision.DecidedBy(); ok {
		a.DecidedBy = &by
	}
}

// aclName returns the name under which rules guard the key of a question; "" if no rule of a key applies.
func (s *session) aclName(a *access, request authz.Request) string {
	note := func(text string) { a.Notes = append(a.Notes, text) }
	switch {
	case request.Key == "":
		if a.Key != "" {
			note("This operation uses no rule of a key.")
		}
		return ""
	case !s.KeyAuthorization && request.Key != authz.KeyMigrate:
		note("hadoop.kms.key.authorization.enable is false: the rules of keys are not used.")
		return ""
	case a.Key == "":
		note("No key is named: the rules of keys, which the KMS also checks, were not used.")
		return ""
	}
	m, err := s.metadataOf(a.Key)
	switch {
	case err != nil:
		note("You may not read the key's metadata, so its own name is used as its ACL name: " + s.problemText(err))
	case m == nil:
		note("There is no such key: its own name is used as its ACL name.")
	default:
		return m.ACLName()
	}
	return a.Key
}

// rights returns which of shownRights the user has on a key.
func (s *session) rights(key string, attributes map[string]string) (list []right) {
	for _, name := range shownRights {
		request, _, _ := authz.FindRequest(name) // each name is known
		aclName := ""
		if s.KeyAuthorization {
			aclName = (&claviger.Metadata{Name: key, Attributes: attributes}).ACLName()
		}
		list = append(list, right{name, s.Policy().Explain(request, aclName, s.user, s.Groups).Allowed,
			link("/access", nil, "user", s.user.Short, "operation", name, "key", key)})
	}
	return list
}

// joined joins names for a page.
func joined(names []string) string { return strings.Join(names, ", ") }
