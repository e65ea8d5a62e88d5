package kms

import (
	"context"
	"fmt"
	"log/slog"

	"claviger/hadoopconf"
	"claviger/metastore/location"
	"claviger/owner"
	"claviger/provider/hsm"
)

// NewStages returns a service that has no open part. A check opens its parts one after another, and goes on with the
// others if one cannot be opened. It changes nothing, and logs in to a token only if no wrong PIN was tried there
// before. The caller closes the service.
func NewStages(conf *hadoopconf.Conf, command string, log *slog.Logger) *Service {
	return &Service{Conf: conf, Log: log, self: owner.Self(command, conf.Dir()), access: hsm.Inspect, careful: true}
}

// OpenStore opens the metastore. If that fails, the other parts get an empty store, which is in memory.
func (s *Service) OpenStore(ctx context.Context) error {
	_, err := s.store(ctx)
	if err == nil {
		return nil
	}
	if s.Store, s.storeErr = location.OpenEmpty(ctx, s.Conf); s.storeErr != nil {
		s.Store = nil
	}
	return err
}

// OpenPrimary opens the first provider.
func (s *Service) OpenPrimary(ctx context.Context) error { return RefuseMisfit(s.openPrimary(ctx)) }

// Node is a server that uses the metastore now.
type Node struct {
	Name    string   // host and process, for messages
	Host    string   // as its operating system names it
	Version string   // of the program; "" if it is not known
	Differs []string // settings that differ from those of this configuration's files
}

// Nodes returns the servers that use the metastore now, as far as they have recorded their settings.
func (s *Service) Nodes(ctx context.Context) ([]Node, error) {
	own, records, err := s.nodeRecords(ctx)
	nodes := make([]Node, 0, len(records))
	for _, n := range records {
		nodes = append(nodes, Node{Name: fmt.Sprintf("process %d on %s", n.PID, n.Host), Host: n.Host,
			Version: n.Version, Differs: own.differing(n)})
	}
	return nodes, err
}

// OpenSources opens the sources.
func (s *Service) OpenSources(ctx context.Context) error { return s.openSources(ctx) }

// Addresses returns each "host:port" at which clients may reach this server. The list is empty if the system chooses
// the port.
func (s *Service) Addresses(ctx context.Context) []string { return ownAddresses(ctx, s.Conf) }
