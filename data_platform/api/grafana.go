package api

import "github.com/naru-platform/naru/component"

func (a *api) grafana() []component.Route { return nil }
