package kmsapi_test

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"claviger/kmsapi"
)

// recordedOperations are the servlets as the recorded server had them.
func recordedOperations() kmsapi.Operations {
	return kmsapi.Operations{
		Port: 17600, Level: new(slog.LevelVar),
		Properties: func() ([]kmsapi.Property, error) {
			return []kmsapi.Property{
				{Name: "hadoop.kms.http.host", Written: "0.0.0.0", Value: "0.0.0.0", Source: "kms-default.xml"},
				{Name: "hadoop.kms.http.port", Written: "17600", Value: "17600",
					Source: "file:/srv/hadoop/kms1/kms-site.xml"},
			}, nil
		},
	}
}

// notOurs are what the recorded server shows that this one does not, as
// docs/hadoop-divergences.md says under D-jmx: beans, and BEAN.ATTRIBUTE.
var notOurs = words(`Hadoop:service=KMS,name=UgiMetrics java.lang:type=Memory.ObjectPendingFinalizationCount`)

// sameBeans compares answers of /jmx: the same beans, the same attributes in
// each, the same kinds of values; and strings that tell what a bean is. It says
// what differs, or "", and notes what of notOurs was missed.
func sameBeans(got, want any, missed map[string]bool) string {
	g, w := beansOf(got), beansOf(want)
	for name, attributes := range w {
		ours, ok := g[name]
		if notOurs[name] && !ok {
			missed[name] = true
			continue
		}
		if !ok {
			return "there is no bean " + name
		}
		for a, v := range attributes {
			full := name + "." + a
			o, ok := ours[a]
			switch {
			case notOurs[full] && !ok:
				missed[full] = true
			case !ok:
				return "there is no " + full
			case kindOf(o) != kindOf(v):
				return fmt.Sprintf("%s is a %s, want a %s", full, kindOf(o), kindOf(v))
			case kindOf(v) == "string" && a != "tag.Hostname" && o != v:
				if a == "modelerType" && name == "java.lang:type=Memory" {
					missed[full] = true // Java's class
					continue
				}
				return fmt.Sprintf("%s is %v, want %v", full, o, v)
			}
		}
		for a := range ours {
			if _, ok := attributes[a]; !ok {
				return "nobody knows " + name + "." + a
			}
		}
	}
	for name := range g {
		if w[name] == nil {
			return "nobody knows the bean " + name
		}
	}
	return ""
}

func beansOf(answer any) map[string]map[string]any {
	byName := map[string]map[string]any{}
	top, _ := answer.(map[string]any)
	list, _ := top["beans"].([]any)
	for _, b := range list {
		attributes, _ := b.(map[string]any)
		name, _ := attributes["name"].(string)
		byName[name] = attributes
	}
	return byName
}

func kindOf(v any) string {
	switch v := v.(type) {
	case json.Number:
		return "number"
	case string:
		return "string"
	case map[string]any:
		return fmt.Sprint("object of ", len(v))
	}
	return fmt.Sprintf("%T", v)
}
