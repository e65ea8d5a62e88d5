package kms

import (
	"claviger"
	"claviger/authz"
	"claviger/console"
	"claviger/hadoopconf"
	"claviger/kmsapi"
)

// operationSettings are the properties of the servlets for operators.
type operationSettings struct {
	authorization   bool // hadoop.security.authorization
	instrumentation bool // hadoop.security.instrumentation.requires.admin
	prometheus      bool // hadoop.prometheus.endpoint.enabled
}

func (r *reader) operations() operationSettings {
	return operationSettings{
		authorization:   r.bool("hadoop.security.authorization"),
		instrumentation: r.bool("hadoop.security.instrumentation.requires.admin"),
		prometheus:      r.bool("hadoop.prometheus.endpoint.enabled"),
	}
}

// operations returns the servlets as configured. port is the server's own port.
func (s *server) operations(port int, metrics *console.Metrics) (kmsapi.Operations, error) {
	// A secret that /conf could not hide is an error now, not at the first request of /conf.
	if err := s.conf.CheckPublic(); err != nil {
		return kmsapi.Operations{}, err
	}
	op := kmsapi.Operations{
		ProcessName: s.conf.String("hadoop.kms.metrics.process.name"),
		SessionID:   s.conf.String("hadoop.kms.metrics.session.id"),
		Port:        port, Properties: s.properties, Level: s.level,
		InstrumentationAdmin: s.set.operations.instrumentation,
	}
	op.Administrator = s.administrator()
	if s.set.operations.prometheus && metrics != nil {
		op.Prometheus = metrics.Handler(s.log, s.set.web.details)
	}
	return op, nil
}

// administrator returns whether a caller is an administrator. It is nil if the configuration does not tell
// administrators from other users.
func (s *server) administrator() func(claviger.Principal) bool {
	if !s.set.operations.authorization {
		return nil
	}
	// Not trimmed: a leading blank means that the names are groups. An empty value means that there are no
	// administrators.
	acl := authz.ParseACL(s.conf.WithPrefix("hadoop.kms.http.")["administrators"])
	return func(who claviger.Principal) bool { return acl.Admits(who, s.auth.groups.Of) }
}

// properties returns the properties of /conf. Their sources have Hadoop's names.
func (s *server) properties() ([]kmsapi.Property, error) {
	shown, err := s.conf.Public()
	if err != nil {
		return nil, err
	}
	list := make([]kmsapi.Property, len(shown))
	for i, p := range shown {
		list[i] = kmsapi.Property{Name: p.Name, Written: p.Written, Value: p.Value, Final: p.Final,
			Source: sourceName(p)}
	}
	return list, nil
}

func sourceName(p hadoopconf.Shown) string {
	switch {
	case p.Source == "":
		return "kms-default.xml"
	case p.Source[0] == '/':
		return "file:" + p.Source
	}
	return p.Source // a flag, or the environment
}
